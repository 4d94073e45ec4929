"""Runs whose tasks are what an application recorded."""

from __future__ import annotations

import json
import multiprocessing
import re
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from r3agent import ConfigError, OpenAIPolicy, Recorder, Trajectory, build_graph, load
from r3agent.cli.gateway import gateway
from r3agent.cli.main import main
from r3agent.run.directory import RunDirectory
from r3agent.store.labels import label
from r3agent.tasks import find_tasks
from r3agent.testing import ScriptedEndpoint
from r3agent.verifiers import find_verifier
from tests.support.trees import span

PARTS = ("train", "gate", "test")


def episode(i: int, *, passed: bool | None = None, task_id: str | None = None) -> Trajectory:
    task: dict[str, Any] = {"messages": [{"role": "user", "content": f"question {i}"}], "info": {"answer": str(i)}}
    named = {} if task_id is None else {"id": task_id}
    return Trajectory.model_validate({"task": task | named, "spans": (span("attempt", passed=passed, text="0"),)})


def recorded(directory: Path, n: int = 40) -> list[Trajectory]:
    episodes = [episode(i) for i in range(n)]
    with Recorder(directory) as recorder:
        for one in episodes:
            recorder.record(one)
    return episodes


def init(run: Path, *words: str) -> int:
    return main(["init", "--task", "recorded", "--run", str(run), *words])


def _record(run: Path, numbers: range) -> None:
    with Recorder(run=run) as recorder:
        for i in numbers:
            recorder.record(episode(i))


def test_recorder_of_a_run_writes_where_its_stages_read(tmp_path: Path) -> None:
    assert init(tmp_path / "run") == 0
    started = multiprocessing.get_context("spawn")
    workers = [started.Process(target=_record, args=(tmp_path / "run", range(k, k + 10))) for k in (0, 10)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found = RunDirectory(tmp_path / "run").trajectories()
    assert {t.task.info["answer"] for t in found} == {str(i) for i in range(20)}
    assert {t.metadata["split"] for t in found} <= {*PARTS}


def test_recorder_refuses_what_is_no_run(tmp_path: Path) -> None:
    assert init(tmp_path / "prod") == 0
    with pytest.raises(ConfigError, match=r"prox' is no run.*did you mean 'prod'.*init --task recorded --run"):
        Recorder(run=tmp_path / "prox")
    with pytest.raises(ConfigError, match="not both"):
        Recorder(tmp_path, run=tmp_path / "prod")
    with pytest.raises(ConfigError, match="is no run"):
        gateway(upstream="http://127.0.0.1:9/v1", run=tmp_path / "prox")
    assert not (tmp_path / "prox").exists()


def test_init_copies_a_store_with_its_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    episodes = recorded(tmp_path / "store")
    label(tmp_path / "store", episodes[0].trajectory_id, passed=False)
    (shard,) = (tmp_path / "store").glob("*.jsonl")
    with shard.open("ab") as torn:
        torn.write(b'{"trajectory_id": "half')
    assert init(tmp_path / "run", "--from", str(tmp_path / "store"), "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["episodes"], report["unlabelled"]) == (40, 39)
    assert sum(report["tasks"].values()) == 40
    run = RunDirectory(tmp_path / "run")
    assert [t.passed for t in run.trajectories()] == [False, *[None] * 39]
    assert len(load(tmp_path / "store")) == 40


def test_recorded_tasks_of_one_prompt_are_in_one_split(tmp_path: Path) -> None:
    with Recorder(tmp_path) as recorder:
        for i in range(60):
            recorder.record(episode(i % 12, task_id=f"ticket-{i}"))
    train, test = (
        {task.messages[0]["content"] for task in find_tasks(f"recorded:{tmp_path}", split=part)}
        for part in ("train", "test")
    )
    assert train
    assert test
    assert not train & test


def test_run_of_recorded_tasks_draws_what_it_holds_out(tmp_path: Path) -> None:
    recorded(tmp_path / "store")
    assert init(tmp_path / "run", "--from", str(tmp_path / "store"), "--verifier", "exact") == 0
    run = RunDirectory(tmp_path / "run")
    drawn = {task.id for task in run.draw_tasks(None, split="test", seed=0)}
    assert {t.task.id for t in run.trajectories() if t.metadata["split"] == "test"} == drawn
    assert drawn.isdisjoint(task.id for task in run.draw_tasks(None, split="train", seed=0))


def test_run_holds_out_what_an_application_calls_train(tmp_path: Path) -> None:
    with Recorder(tmp_path / "store") as recorder:
        for i in range(40):
            recorder.record(episode(i).changed(metadata={"split": "train"}))
    assert init(tmp_path / "run", "--from", str(tmp_path / "store"), "--verifier", "exact") == 0
    run = RunDirectory(tmp_path / "run")
    held_out = {task.id for task in run.draw_tasks(None, split="test", seed=0)}
    assert held_out
    assert held_out == {t.task.id for t in run.trajectories() if t.metadata["split"] == "test"}


def test_run_that_waits_for_labels_takes_a_verifier_later(tmp_path: Path) -> None:
    recorded(tmp_path / "store")
    assert init(tmp_path / "run", "--from", str(tmp_path / "store")) == 0
    assert RunDirectory(tmp_path / "run").verifier_name == "later"
    assert RunDirectory(tmp_path / "run", {"task.verifier": "exact"}).verifier_name == "exact"
    with pytest.raises(ConfigError, match="is a run of 'recorded'"):
        RunDirectory(tmp_path / "run", {"task.source": "countdown"})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "recorded", "--from", "nowhere"], "there is no such directory"),
        (["--task", "countdown", "--from", "store"], "add that"),
        (["--task", "recorded", "--from", "empty"], "in which an application recorded some"),
        (["--task", "recorded", "--run", "store"], "is a store, which store/r3.toml would hide"),
    ],
)
def test_init_refuses_with_a_remedy(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    recorded(Path("store"), 2)
    Path("empty").mkdir()
    assert main(["init", *([] if "--run" in words else ["--run", "run"]), *words]) == 2
    assert message in capsys.readouterr().err
    assert not Path("run/r3.toml").exists()
    assert not Path("run/trajectories").exists()


def test_collect_of_a_run_without_records_says_how_to_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert init(tmp_path / "run", "--verifier", "exact") == 0
    with pytest.raises(ConfigError, match=r"nothing is recorded in .*run/trajectories; let an application record"):
        RunDirectory(tmp_path / "run").draw_tasks(5, split="train", seed=0)


def test_gateway_begins_a_run_of_recorded_tasks(tmp_path: Path) -> None:
    run = tmp_path / "prod"
    with ScriptedEndpoint("6", model="tiny") as endpoint:
        assert init(run, "--url", endpoint.url, "--model", "tiny") == 0
        command = [sys.executable, "-m", "r3agent", "gateway", "--run", str(run), "--upstream", endpoint.url]
        with subprocess.Popen([*command, "--port", "0"], stderr=subprocess.PIPE, text=True) as started:
            assert started.stderr is not None
            base = next(found[1] for line in started.stderr if (found := re.search(r"gateway on (\S+)/v1", line)))
            asked = {"model": "tiny", "messages": [{"role": "user", "content": "2 * 3?"}]}
            httpx.post(f"{base}/episodes/order-8/attempt/v1/chat/completions", json=asked).raise_for_status()
            started.send_signal(signal.SIGINT)
            started.communicate(timeout=60)
    (kept,) = RunDirectory(run).trajectories()
    assert (kept.metadata["episode"], kept.policy_versions) == ("order-8", ("v0000",))


# ---- from production to a group that can be trained on ----


def reply(body: dict[str, Any], choice: int) -> str:
    """Fail at first; every second reflection of a request helps."""
    messages = [str(message["content"]) for message in body["messages"]]
    if "Reflect" in messages[-1]:
        return "look it up" if choice % 2 else "try again"
    return "42" if "look it up" in messages else "no idea"


def test_recorded_failures_are_labelled_branched_off_and_judged_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "prod")
    with ScriptedEndpoint(reply, model="tiny") as endpoint:
        assert main(["init", "--task", "recorded", "--run", run, "--url", endpoint.url, "--model", "tiny"]) == 0
        with closing(OpenAIPolicy(endpoint.url, "tiny")) as policy, Recorder(run=run) as recorder:
            graph = build_graph(policy=policy, verifier=find_verifier("later")).compile()
            for i in range(12):
                task = {"messages": [{"role": "user", "content": f"question {i}"}], "info": {"answer": "42"}}
                recorder.record(graph.invoke({"task": task}))
        assert main(["branch", "--run", run]) == 2
        assert "left out, unlabelled: " in capsys.readouterr().err
        complaints = tmp_path / "complaints.csv"
        complaints.write_text("episode\n" + "\n".join(t.trajectory_id for t in load(run)))
        assert main(["label", run, "--from", str(complaints), "--failed"]) == 0
        assert main(["branch", "--run", run]) == 2
        assert "unjudged: " in capsys.readouterr().err
        words = ["--run", run, "--verifier", "exact", "--reflections", "4", "--json"]
        assert main(["branch", *words]) == 0
    report = json.loads(capsys.readouterr().out)
    held_out = sum(t.metadata["split"] != "train" for t in RunDirectory(run).trajectories())
    assert report["left_out"] == {"held_out": held_out}
    assert (report["branches"], report["summary"]["groups_with_variance"]) == (12 - held_out,) * 2
    assert main(["reverify", run, "--json"]) == 0
    changes = json.loads(capsys.readouterr().out)["changes"]
    assert {*changes} == {"open->wrong", "right->right", "wrong->wrong"}
    assert RunDirectory(run).verifier_name == "exact"
