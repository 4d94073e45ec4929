"""The contracts of the command line: exit codes, --json, help with an example, and messages that help."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from r3agent.cli.main import VERBS, main
from r3agent.records.trajectory import HELD_OUT, Task, Trajectory
from r3agent.run.config import load_config
from r3agent.run.demo import SETTINGS
from r3agent.store.shards import TrajectoryWriter
from r3agent.store.trajectories import load
from r3agent.tasks import find_tasks
from r3agent.tasks.splits import split_of
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
        _, collected, _ = call(capsys, *collecting(tmp_path, endpoint, tasks))
    code, out, _ = call(capsys, "inspect", "--run", tmp_path / "run", "--json")
    first = json.loads(out)["failed"][0]
    assert code == 0
    code, out, _ = call(capsys, "inspect", "--run", tmp_path / "run")
    summed = {line for line in collected.splitlines() if line.startswith("  ")}
    assert re.search(r"  retry after reflection   50.0% \(.*\), mean of 3 tasks   3 of 6 tries passed\n", out)
    assert summed < set(out.splitlines())
    code, out, _ = call(capsys, "inspect", first, "--run", tmp_path / "run")
    assert code == 0
    assert "reflect credit +0.71, reward 1.00" in out
    assert "reflect credit -0.71, reward 0.00" in out
    code, _, err = call(capsys, "inspect", "nothing", "--run", tmp_path / "run")
    assert code == 2
    assert "not among the 3" in err


def test_inspect_reads_the_store_of_a_recorder(tmp_path, capsys):
    with TrajectoryWriter(tmp_path) as writer:
        writer.append(Trajectory(trajectory_id="first", task=Task(messages=({"role": "user", "content": "?"},))))
    code, out, _ = call(capsys, "inspect", tmp_path)
    assert (code, out.splitlines()[0]) == (0, f"1 trajectory in {tmp_path}, 0 tokens sampled")


def test_inspect_counts_what_it_does_not_show(tmp_path, capsys):
    tasks = [Task(id="t", messages=({"role": "user", "content": "?"},), info={"answer": n}) for n in (1, 2)]
    with TrajectoryWriter(tmp_path) as writer:
        for i, task in enumerate(tasks):
            created = {"created_at": f"2026-01-0{i + 1}T00:00:00+00:00", "metadata": {"source": "a"}}
            writer.append(Trajectory(trajectory_id=f"{i}", task=task, **created))
    (tmp_path / "00001.jsonl").write_text('{"task": 3}\n')
    _, out, err = call(capsys, "inspect", tmp_path)
    assert "1 of tasks that have changed since: not trained on" in out
    assert "00001.jsonl:1: not a trajectory: task = 3" in out
    assert "a line is no record and is left out" not in err
    _, out, _ = call(capsys, "inspect", tmp_path, "--json")
    assert (json.loads(out)["task_changed"], len(json.loads(out)["unreadable"])) == (1, 1)


def test_inspect_holds_out_what_training_does(tmp_path, capsys):
    lines = [{"id": str(i), "prompt": f"{i}: what is 2 * 3?", "answer": "6"} for i in range(20)]
    (tasks := tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with ScriptedEndpoint(answer) as endpoint:
        call(capsys, *collecting(tmp_path, endpoint, tasks))
    first, store = load(tmp_path / "run" / "trajectories")[0], tmp_path / "run" / "trajectories"
    frozen = [Task.of({"messages": t.messages}) for split in HELD_OUT for t in find_tasks(str(tasks), split=split)]
    recorded = next(task for task in frozen if split_of(task.id) == "train")
    with TrajectoryWriter(store) as writer:
        writer.append(first.changed(trajectory_id="recorded", task=recorded, metadata={}))
    for id_, reasons in (("recorded", {"held_out"}), (first.trajectory_id, {None})):
        _, out, _ = call(capsys, "inspect", id_, "--run", tmp_path / "run", "--json")
        spans = [span for span in json.loads(out)["spans"] if span["label"] == "reflect"]
        assert {span["no_credit"] for span in spans} == reasons


def test_init_writes_the_settings_once(tmp_path, capsys):
    code, out, _ = call(capsys, "init", "--run", tmp_path / "run", "--task", "countdown", "--json")
    assert code == 0
    assert Path(json.loads(out)["config"]).read_text().startswith("[policy]")
    code, _, err = call(capsys, "init", "--run", tmp_path / "run")
    assert code == 2
    assert "exists" in err


@pytest.mark.parametrize("verb", ["collect", "eval", "loop", "audit"])
def test_a_run_without_a_task_asks_for_one(verb, tmp_path, capsys):
    with ScriptedEndpoint(answer) as endpoint:
        where = ["--run", tmp_path / "run"]
        code, out, _ = call(capsys, "init", *where, "--url", endpoint.url, "--model", endpoint.model)
        assert code == 0
        assert "it names no task" in out
        code, _, err = call(capsys, verb, *where)
        assert code == 2
        assert "task.source is empty" in err
        assert "--task countdown" in err
        assert endpoint.received == []


def test_init_hints_at_the_path_of_the_api(tmp_path, capsys):
    code, out, _ = call(capsys, "init", "--run", tmp_path / "bare", "--url", "http://127.0.0.1:8765")
    assert code == 0
    assert "policy.base_url usually ends in /v1: try http://127.0.0.1:8765/v1; `r3agent doctor http://127" in out
    _, out, _ = call(capsys, "init", "--run", tmp_path / "run", "--url", "http://127.0.0.1:8765/v1")
    assert "usually ends" not in out


def test_a_task_named_later_is_written_to_the_file(tmp_path, tasks, capsys):
    file = tmp_path / "run" / "r3.toml"
    with ScriptedEndpoint(answer) as endpoint:
        call(capsys, "init", "--run", tmp_path / "run", "--url", endpoint.url, "--model", endpoint.model)
        file.write_text("# mine\n" + file.read_text())
        assert call(capsys, *collecting(tmp_path, endpoint, tasks))[0] == 0
        assert file.read_text().startswith("# mine\n")
        assert (load_config(file, {}).task.source, load_config(file, {}).task.verifier) == (str(tasks), "exact")
        code, _, err = call(capsys, "collect", "--run", tmp_path / "run", "--task", "countdown")
    assert code == 2
    assert f"is a run of '{tasks}'" in err


@pytest.mark.parametrize(
    ("flags", "max_tokens", "is_demo"),
    [
        (["--task", "countdown"], SETTINGS["sampling.max_tokens"], True),
        (["--task", "countdown", "--set", "sampling.max_tokens=99"], 99, True),
        (["--task", "countdown", "--model", "mine"], 512, False),
        (["--task", "tasks.jsonl"], 512, True),
        (["--task", "recorded"], 512, True),
        (["--task", "recorded", "--model", "mine", "--base-model", "org/mine"], 512, False),
    ],
)
def test_init_takes_the_demos_settings_for_its_policy(flags, max_tokens, is_demo, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tasks.jsonl").write_text('{"prompt": "What is 6 times 7?", "answer": "42"}\n')
    code, out, _ = call(capsys, "init", "--run", tmp_path, *flags)
    assert code == 0
    written = load_config(tmp_path / "r3.toml", {})
    assert written.sampling.max_tokens == max_tokens
    assert (written.train.learning_rate == SETTINGS["train.learning_rate"]) == is_demo
    assert ("another model needs others" in out) == is_demo


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--task", "countdwn"], "task 'countdwn' is unknown"),
        (["--task", "none.jsonl"], "there is no such file"),
        (["--verifier", "exactly"], "verifier 'exactly' is unknown"),
        (["--verifier", "json:nothing"], "has no 'nothing'"),
        (["--reflections", "-1"], "collect.reflections = -1"),
        (["--set", "train.epocs=1"], "did you mean 'train.epochs'"),
        (["--set", "train.credit.retry=lift"], "what fits retry is 'success' or 'score'"),
        (["--set", "train.credit={reflexion='lift'}"], "unknown label 'reflexion'; did you mean 'reflect'?"),
        (["--set", "epochs"], "section.key=value"),
        (["--task", "countdown", "--set", "task.params={max_nubmer=3}"], "max_nubmer"),
        (["--set", "collect.n.x=3"], "collect.n = {'x': 3}: Input should be a valid integer"),
        (["--set", "collect.n"], "--set 'collect.n': write section.key=value"),
        (["--set", "collect=3"], "--set 'collect=3': write section.key=value"),
    ],
)
def test_a_wrong_setting_exits_2_before_any_request(flags, says, tmp_path, capsys):
    with ScriptedEndpoint(answer) as endpoint:
        code, _, err = call(capsys, "collect", "--run", tmp_path / "run", "--url", endpoint.url, *flags)
        assert code == 2
        assert says in err
        assert endpoint.received == []


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"api_key": "right"}, "check the API key"), ({"faults": [HTML_PAGE] * 99}, "not a chat completion")],
    ids=["another key", "no API"],
)
def test_an_endpoint_that_cannot_be_used_exits_1(settings, says, tmp_path, tasks, capsys):
    with ScriptedEndpoint(answer, **settings) as endpoint:
        code, _, err = call(capsys, *collecting(tmp_path, endpoint, tasks))
    assert code == 1
    assert says in err


@pytest.mark.parametrize("argv", [["deploy", "v0000"], ["eval"], ["loop", "--rounds", "1"]])
def test_a_server_that_is_not_there_exits_1(argv, tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    call(capsys, "init", "--run", tmp_path / "run", "--url", url, "--task", "countdown")
    code, _, err = call(capsys, *argv, "--run", tmp_path / "run")
    assert code == 1
    assert url.removesuffix("/v1") in err
    assert "is the server running?" in err


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


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (answer, "next: r3agent train --run "),
        (
            "5",
            "nothing to train on yet: 0 of 6 reflect spans can be trained on (3 failures; mean reward 0.000 reflect; ",
        ),
    ],
    ids=["to train", "nothing to train on"],
)
def test_what_comes_after_collecting_is_what_training_would_take(reply, says, tmp_path, tasks, capsys):
    with ScriptedEndpoint(reply) as endpoint:
        _, out, _ = call(capsys, *collecting(tmp_path, endpoint, tasks))
    assert out.splitlines()[-1].startswith(says)


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
    assert f"cannot write to {tmp_path / 'run'}" in err
    assert "choose another directory" in err


def test_training_without_failures_says_what_to_do(tmp_path, tasks, capsys):
    pytest.importorskip("trl", reason="needs the train extra")
    with ScriptedEndpoint(RIGHT_AFTER_REFLECTING) as endpoint:
        reflections_alone = "--set=train.recipe=paper"
        _, collected, _ = call(capsys, *collecting(tmp_path, endpoint, tasks), reflections_alone)
    code, _, err = call(capsys, "train", "--run", tmp_path / "run")
    assert code == 2
    said = "0 of 3 first attempts failed: there is nothing to reflect on; collect more tasks, or harder ones"
    assert err == f"r3agent train: {said}\n"
    assert collected.endswith(f"nothing to train on yet: {said}\n")
    assert not (tmp_path / "run" / "policies" / "v0001").exists()


def test_deploy_and_rollback_of_a_version_that_is_not_there(tmp_path, capsys):
    policies = tmp_path / "run" / "policies"
    with ScriptedEndpoint("5") as endpoint:
        call(capsys, "init", "--run", tmp_path / "run", "--url", endpoint.url, "--model", endpoint.model)
        for verb in ("lineage", "policies show", "policies diff v0000"):
            code, _, err = call(capsys, *verb.split(), "v0001", "--run", tmp_path / "run")
            assert (code, f"{policies} has no versions yet; `r3agent collect --run" in err) == (2, True), err
        code, _, err = call(capsys, "deploy", "v0009", "--run", tmp_path / "run")
    assert (code, err) == (2, f"r3agent deploy: 'v0009': {policies} has v0000; name one of them\n")
    code, _, err = call(capsys, "rollback", "--run", tmp_path / "run")
    said = "r3agent rollback: v0000 is live and nothing came before it; name a version to deploy instead\n"
    assert (code, err) == (2, said)


def test_deploying_the_base_says_that_there_was_nothing_to_load(tmp_path, capsys):
    with ScriptedEndpoint("5") as endpoint:
        call(capsys, "init", "--run", tmp_path / "run", "--url", endpoint.url, "--model", endpoint.model)
        code, out, _ = call(capsys, "deploy", "v0000", "--run", tmp_path / "run")
    assert code == 0
    assert f"v0000 is live as {endpoint.model} (base, nothing to load, no fingerprint)" in out


@pytest.mark.parametrize("verb", ["train", "deploy", "rollback", "eval", "inspect"])
def test_a_run_that_is_not_there_exits_2_and_is_not_made(verb, tmp_path, capsys):
    code, out, err = call(capsys, verb, "--run", tmp_path / "typo")
    assert (code, out) == (2, "")
    assert str(tmp_path / "typo") in err
    assert "collect" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "flags", "says"),
    [
        ("collect = 3", [], "collect = 3: Input should be a valid dictionary"),
        ("collect = 3", ["--n", "5"], "collect.n: collect = 3 is not a section; write [collect] with keys below it"),
        ("[collect]\nn = 5", ["--set", "collect.n.x=3"], "collect.n.x: n = 5 is not a section"),
        ("[collect]\nn = 'many'", [], "collect.n = 'many': Input should be a valid integer"),
        ("[colect]\nn = 5", [], "unknown key 'colect'; did you mean 'collect'?"),
        ("collect", [], "not valid TOML"),
    ],
)
def test_a_file_that_does_not_fit_exits_2_and_stays(text, flags, says, tmp_path, capsys):
    (tmp_path / "r3.toml").write_text(text)
    code, _, err = call(capsys, "collect", "--run", tmp_path, *flags)
    assert code == 2
    assert says in err
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("r3.toml", text)]


def test_a_file_may_leave_out_sections(tmp_path, tasks, capsys):
    with ScriptedEndpoint(answer) as endpoint:
        policy = f'[policy]\nbase_url = "{endpoint.url}"\nmodel = "{endpoint.model}"\n'
        task = f'[task]\nsource = "{tasks}"\nverifier = "exact"\n'
        (tmp_path / "r3.toml").write_text(policy + task)
        code, out, _ = call(capsys, "collect", "--run", tmp_path, "--json")
    assert code == 0
    assert json.loads(out)["episodes"] == 3


def test_a_demo_does_not_replace_a_file(tmp_path, capsys):
    (tmp_path / "demo").write_text("mine")
    code, _, err = call(capsys, "demo", "--out", tmp_path / "demo")
    assert code == 2
    assert f"cannot write to {tmp_path / 'demo'}" in err
    assert (tmp_path / "demo").read_text() == "mine"


def test_a_demo_with_another_seed_is_refused(tmp_path, capsys):
    call(capsys, "init", "--run", tmp_path / "demo", "--task", "countdown", "--seed", 1)
    code, _, err = call(capsys, "demo", "--out", tmp_path / "demo")
    assert code == 2
    assert f"{tmp_path / 'demo'} has a run with seed 1, not 0; choose another directory with --out" in err


def test_a_demo_does_not_take_over_a_run_of_the_user_s(tmp_path, capsys):
    call(capsys, "init", "--run", tmp_path / "mine", "--task", "countdown")
    code, _, err = call(capsys, "demo", "--out", tmp_path / "mine")
    assert code == 2
    assert f"{tmp_path / 'mine'} has a run that is no demo" in err


def test_a_port_that_does_not_exist_exits_2(capsys):
    pytest.importorskip("torch", reason="needs the serve extra")
    code, _, err = call(capsys, "serve", "--port", 99999)
    assert code == 2
    assert "--port 99999: must be 0 to 65535" in err


def test_a_reader_that_has_seen_enough_gets_no_traceback(tmp_path):
    reads, writes = os.pipe()
    os.close(reads)
    words = [sys.executable, "-m", "r3agent", "init", "--run", str(tmp_path / "run")]
    done = subprocess.run(words, stdout=writes, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writes)
    assert done.stderr == ""
    assert (tmp_path / "run" / "r3.toml").exists()


FAST = ["--set", "audit.repeats=1", "--set", "audit.concurrency=1", "--set", "audit.slow_s=60"]


def test_an_audit_of_the_shipped_tasks_passes(capsys):
    code, out, _ = call(capsys, "audit", "--task", "countdown", "--n", 5, "--model-limit", 4096, *FAST, "--json")
    said = json.loads(out)
    assert code == 0
    assert said["ok"]
    assert said["tasks"] == {"train": 5, "gate": 5, "test": 5}
    assert {check["name"]: check["counts"]["wrong"] for check in said["checks"] if "wrong" in check["counts"]} == {
        check["name"]: 0 for check in said["checks"] if check["name"] != "verdict time"
    }


def test_an_audit_that_finds_something_exits_1_with_examples_and_makes_no_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"id": str(i), "prompt": f"What is {i % 30} + 1?", "answer": i % 30 + 1} for i in range(40)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, out, _ = call(capsys, "audit", "--task", "mine.jsonl", "--n", 2, *FAST)
    assert code == 1
    assert "not fit to train on: unique prompts, splits apart" in out
    assert "user what is 3 + 1" in out
    assert [path.name for path in tmp_path.iterdir()] == ["mine.jsonl"]


def test_an_audit_tries_the_tasks_on_a_served_model(capsys):
    few = ["--n", 4, "--set", "audit.probe_n=3", "--set", "audit.probe_samples=2", *FAST]
    with ScriptedEndpoint("It is 3.") as endpoint:
        flags = ["--task", "countdown", "--probe", endpoint.url, "--model", endpoint.model]
        code, out, _ = call(capsys, "audit", *flags, *few)
    assert code == 1
    assert "not fit to train on: served: answers read, served: groups vary" in out
    assert "0 of 6 first tries have an answer that the verifier reads; prevailing fault: unreadable, 6 of 6" in out
    assert "-> show the form of the answer in the prompt" in out
    code, _, err = call(capsys, "audit", "--task", "countdown", "--probe", endpoint.url, *few)
    assert code == 1
    assert endpoint.url in err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--task", "none.csv"], "none.csv: there is no such file"),
        (["--task", "countdown", "--verifier", "exactly"], "verifier 'exactly' is unknown"),
        (["--run", "nowhere"], "there is no such run"),
        (["--n", "0"], "audit.n = 0"),
    ],
)
def test_an_audit_of_what_is_not_there_exits_2(flags, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, "audit", *flags)
    assert code == 2
    assert says in err


def test_an_audit_with_a_probe_tries_the_agent_in_its_world(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"id": str(i), "prompt": f"Word {i}?", "answer": str(i)} for i in range(40)]
    Path("mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path("audited_agent.py").write_text(
        "from contextlib import asynccontextmanager\n"
        "@asynccontextmanager\n"
        "async def world(task):\n"
        "    yield {'asked': 0}\n"
        "async def agent(messages, client, environment):\n"
        "    for environment['asked'] in (1, 2):\n"
        "        await client.chat.completions.create(model='policy', messages=messages)\n"
        "def twice(task, answer, environment):\n"
        "    return environment['asked'] == 2\n"
    )
    words = ["--task", "mine.jsonl", "--verifier", "audited_agent:twice", "--agent", "audited_agent:agent"]
    words += ["--environment", "audited_agent:world", "--n", 2, *FAST]
    few = ["--set", "audit.probe_n=2", "--set", "audit.probe_samples=2", "--set", "audit.min_varied=0"]
    with ScriptedEndpoint("It is 3.") as endpoint:
        probe = ["--probe", endpoint.url, "--model", endpoint.model]
        _, out, _ = call(capsys, "audit", *words, *probe, *few)
        assert len(endpoint.received) >= 8
    assert "the verifier judges in the world of a try" in out
    assert "4 of 4 pass" in out
