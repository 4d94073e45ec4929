"""Runs whose tasks are what an application recorded."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from r3agent import ConfigError, Recorder, Trajectory, load
from r3agent.cli.main import main
from r3agent.run.directory import RunDirectory
from r3agent.store.labels import label
from r3agent.tasks import find_tasks
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
    assert not (tmp_path / "prox").exists()


def test_init_copies_a_store_with_its_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    episodes = recorded(tmp_path / "store")
    label(tmp_path / "store", episodes[0].trajectory_id, passed=False)
    (shard,) = (tmp_path / "store").glob("*.jsonl")
    with shard.open("ab") as torn:
        torn.write(b'{"trajectory_id": "half')
    assert init(tmp_path / "run", "--from", str(tmp_path / "store"), "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["episodes"], report["open"]) == (40, 39)
    assert sum(report["splits"].values()) == 40
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
