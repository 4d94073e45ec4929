"""The contracts of the command line: exit codes, --json, help with an example, and messages that help."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from r3agent.cli import VERBS, main
from r3agent.testing import HTML_PAGE, ScriptedEndpoint

RIGHT_AFTER_REFLECTING = "6"


def answer(body: dict[str, Any], choice: int) -> str:
    """Wrong at first; of the reflections only the first leads to the right answer."""
    said = [m["content"] for m in body["messages"]]
    if "Reflect" in said[-1]:
        return f"reflection {choice}"
    return RIGHT_AFTER_REFLECTING if "reflection 0" in said else "5"


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    path = tmp_path / "tasks.jsonl"
    lines = [{"id": str(i), "prompt": f"{i}: what is 2 * 3?", "answer": "6"} for i in (0, 1, 3)]  # of the train split
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def call(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    code = main([str(a) for a in argv])
    said = capsys.readouterr()
    return code, said.out, said.err


def collecting(tmp_path: Path, endpoint: ScriptedEndpoint, tasks: object, *more: object) -> list[object]:
    subject = ["--url", endpoint.url, "--model", endpoint.model, "--task", tasks, "--verifier", "exact"]
    return ["collect", "--run", tmp_path / "run", *subject, "--reflections", 2, *more]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as done:
        main([verb, "--help"])
    said = capsys.readouterr().out
    assert done.value.code == 0
    assert f"example: r3agent {verb}" in said
    assert "--json" in said


def test_wrong_usage_exits_2(capsys):
    with pytest.raises(SystemExit) as done:
        main(["colect"])
    assert done.value.code == 2


def test_collect_stores_episodes_and_goes_on_where_it_was(tmp_path, tasks, capsys):
    with ScriptedEndpoint(answer) as endpoint:
        argv = collecting(tmp_path, endpoint, tasks, "--json")
        code, out, _ = call(capsys, *argv)
        summary = json.loads(out)
        assert code == 0
        assert summary["episodes"] == 3
        assert summary["retry_after_reflection"] == 0.5
        assert summary["groups_with_variance"] == 3
        asked = len(endpoint.received)
        _, out, _ = call(capsys, *argv)
        assert json.loads(out)["resumed"] == 3
        assert len(endpoint.received) == asked


def test_inspect_shows_the_run_and_a_conversation_with_its_credit(tmp_path, tasks, capsys):
    with ScriptedEndpoint(answer) as endpoint:
        call(capsys, *collecting(tmp_path, endpoint, tasks))
    code, out, _ = call(capsys, "inspect", "--run", tmp_path / "run", "--json")
    first = json.loads(out)["failed"][0]
    assert code == 0
    code, out, _ = call(capsys, "inspect", first, "--run", tmp_path / "run")
    assert code == 0
    assert "reflect reward 1.00" in out
    assert "reflect reward 0.00" in out
    code, _, err = call(capsys, "inspect", "nothing", "--run", tmp_path / "run")
    assert code == 2
    assert "not among the 3" in err


def test_init_writes_the_settings_once(tmp_path, capsys):
    code, out, _ = call(capsys, "init", "--run", tmp_path / "run", "--task", "countdown", "--json")
    assert code == 0
    assert Path(json.loads(out)["config"]).read_text().startswith("[policy]")
    code, _, err = call(capsys, "init", "--run", tmp_path / "run")
    assert code == 2
    assert "exists" in err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--task", "countdwn"], "task 'countdwn' is unknown"),
        (["--task", "none.jsonl"], "No such file"),
        (["--verifier", "exactly"], "verifier 'exactly' is unknown"),
        (["--verifier", "json:nothing"], "has no 'nothing'"),
        (["--reflections", "-1"], "collect.reflections = -1"),
        (["--set", "train.epocs=1"], "did you mean 'train.epochs'"),
        (["--set", "epochs"], "section.key=value"),
        (["--set", "task.params={max_nubmer=3}"], "max_nubmer"),
    ],
)
def test_a_wrong_setting_exits_2_before_any_request(flags, says, tmp_path, capsys):
    with ScriptedEndpoint(answer) as endpoint:
        code, _, err = call(capsys, "collect", "--run", tmp_path / "run", "--url", endpoint.url, *flags)
        assert code == 2
        assert says in err
        assert endpoint.received == []


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        (ScriptedEndpoint(answer, api_key="right"), "check the API key"),
        (ScriptedEndpoint(answer, faults=[HTML_PAGE] * 99), "not a chat completion"),
    ],
)
def test_an_endpoint_that_cannot_be_used_exits_1(endpoint, says, tmp_path, tasks, capsys):
    with endpoint:
        code, _, err = call(capsys, *collecting(tmp_path, endpoint, tasks))
    assert code == 1
    assert says in err


def test_a_wrong_model_exits_1_and_is_named(tmp_path, tasks, capsys):
    with ScriptedEndpoint(answer) as endpoint:
        code, _, err = call(capsys, *collecting(tmp_path, endpoint, tasks, "--model", "other"))
    assert code == 1
    assert "'other'" in err
    assert "check the model's name" in err


def test_a_verifier_that_raises_ends_in_1_with_its_words(tmp_path, tasks, capsys):
    tasks.write_text('{"id": "0", "prompt": "no expected answer for the exact verifier"}\n')
    with ScriptedEndpoint(answer) as endpoint:
        code, _, err = call(capsys, *collecting(tmp_path, endpoint, tasks))
    assert code == 1
    assert "VerifierError" in err
    assert "KeyError" in err


def test_a_run_of_another_task_is_refused(tmp_path, tasks, capsys):
    with ScriptedEndpoint(answer) as endpoint:
        call(capsys, *collecting(tmp_path, endpoint, tasks))
        code, _, err = call(capsys, *collecting(tmp_path, endpoint, "countdown"))
    assert code == 2
    assert "choose another directory with --run" in err


def test_an_unwritable_directory_exits_2(tmp_path, tasks, capsys):
    (tmp_path / "run").write_text("a file is in the way")
    with ScriptedEndpoint(answer) as endpoint:
        code, _, err = call(capsys, *collecting(tmp_path, endpoint, tasks))
    assert code == 2
    assert "choose another with --run" in err


def test_training_without_failures_says_what_to_do(tmp_path, tasks, capsys):
    with ScriptedEndpoint(RIGHT_AFTER_REFLECTING) as endpoint:
        call(capsys, *collecting(tmp_path, endpoint, tasks))
    code, _, err = call(capsys, "train", "--run", tmp_path / "run")
    assert code != 0
    assert "collect" in err


def test_deploy_and_rollback_of_a_version_that_is_not_there(tmp_path, capsys):
    call(capsys, "init", "--run", tmp_path / "run")
    code, _, err = call(capsys, "deploy", "v0009", "--run", tmp_path / "run")
    assert code == 2
    assert "v0009" in err
    code, _, err = call(capsys, "rollback", "--run", tmp_path / "run")
    assert code == 2
    assert "nothing" in err
