"""Branches of what an application recorded, in a run: its stage, its verb and its loop."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest

from r3agent import OpenAIPolicy, Recorder, build_graph, label, load
from r3agent.cli.main import main
from r3agent.errors import ConfigError
from r3agent.run.stages import Run
from r3agent.tasks.splits import split_of
from r3agent.testing import ScriptedEndpoint
from r3agent.train import build_rows
from r3agent.verifiers import find_verifier

N_TASKS = 30


def reply(body: dict[str, Any], choice: int) -> str:
    """Fail at first; every second reflection of a request helps."""
    messages = [str(message["content"]) for message in body["messages"]]
    if "Reflect" in messages[-1]:
        return "use the tables" if choice % 2 else "try again"
    return "6" if "use the tables" in messages else "5"


@pytest.fixture
def endpoint() -> Iterator[ScriptedEndpoint]:
    with ScriptedEndpoint(reply, model="tiny") as endpoint:
        yield endpoint


@pytest.fixture
def settings(endpoint: ScriptedEndpoint, tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "tasks.jsonl"
    lines = ({"id": str(i), "prompt": f"{i}: what is 2 * 3?", "answer": "6"} for i in range(N_TASKS))
    file.write_text("\n".join(map(json.dumps, lines)))
    given = {"policy.base_url": endpoint.url, "policy.model": "tiny", "task.source": str(file)}
    return {**given, "task.verifier": "exact", "collect.reflections": 4, "collect.n": 2}


@pytest.fixture
def produced(endpoint: ScriptedEndpoint, settings: dict[str, Any], tmp_path: Path) -> Path:
    """Store of an application: every task once, a reflection after each failure, verdicts of a verifier."""
    store = tmp_path / "prod"
    with closing(OpenAIPolicy(endpoint.url, "tiny")) as policy, Recorder(store) as recorder:
        graph = build_graph(policy=policy, verifier=find_verifier("exact")).compile()
        for task in Run(tmp_path / "other", settings).draw_tasks(None, split="all", seed=0):
            state = graph.invoke({"task": task.model_dump()}, {"metadata": {"user": f"u{task.id}"}})
            recorder.record(state["trajectory"])
    return store


def test_branch_stage_draws_groups_to_train_on(settings: dict[str, Any], produced: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", {**settings, "branch.source": str(produced)})
    report = run.branch()
    of_split = Counter(split_of(t.task.id) for t in load(produced))
    assert min(of_split["train"], of_split["test"]) > 1
    assert report.left_out == {"held_out": of_split["gate"] + of_split["test"]}
    assert (report.branches, report.summary.groups_with_variance) == (of_split["train"],) * 2
    stored = run.trajectories()
    rows, counts = build_rows(stored, config=run.config.train, version="v0000")
    labels = Counter(row.label for row in rows)
    assert (labels["reflect"], counts.dropped) == (4 * of_split["train"], {})
    assert all(t.metadata["user"] == f"u{t.task.id}" and t.metadata["split"] == "train" for t in stored)
    again = run.branch()
    assert (again.summary.resumed, len(load(run.directory / "trajectories"))) == (report.branches, report.branches)


def test_branch_of_nothing_writes_nothing(settings: dict[str, Any], produced: Path, tmp_path: Path) -> None:
    for own, says in (({"branch.since": "2999-01-01"}, "no try failed"), ({"task.verifier": "later"}, "unjudged")):
        with pytest.raises(ConfigError, match=says):
            Run(tmp_path / "new", {**settings, "branch.source": str(produced), **own}).branch()
    assert not (tmp_path / "new").exists()


def test_branch_of_few_takes_others_in_each_round(settings: dict[str, Any], produced: Path, tmp_path: Path) -> None:
    few = {**settings, "branch.source": str(produced), "branch.n": 3}
    taken = [
        {begin.parent_id for begin in Run(tmp_path / f"run{seed}", {**few, "task.seed": seed}).failures().begins}
        for seed in (0, 0, 1)
    ]
    assert len(taken[0]) == 3
    assert taken[0] == taken[1] != taken[2]


def test_branch_verb_goes_on_after_labels(
    settings: dict[str, Any], endpoint: ScriptedEndpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, given = tmp_path / "run", [f"--set={key}={value}" for key, value in settings.items()]
    Run(run, settings).ensure_live()
    with closing(OpenAIPolicy(endpoint.url, "tiny")) as policy, Recorder(run / "trajectories") as recorder:
        graph = build_graph(policy=policy, verifier=find_verifier("later")).compile()
        tasks = Run(run, settings).draw_tasks(4, split="train", seed=3)
        for task in tasks:
            recorder.record(graph.invoke({"task": task.model_dump()})["trajectory"])
    assert main(["branch", "--run", str(run), *given]) == 2
    says = capsys.readouterr().err
    assert re.search(r"nothing to branch off, in 4 recorded episodes:\n  4 left out, unlabelled: .*r3agent label", says)
    for trajectory in load(run)[:3]:
        label(run, trajectory.trajectory_id, passed=False, feedback="not a number", by="customers")
    assert main(["branch", "--run", str(run), "--json", *given]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["branches"], report["left_out"]) == (3, {"unlabelled": 1})
    assert sum(report["summary"]["recorded_prompts"].values()) == 3
    assert main(["branch", "--run", str(run), "--from", str(tmp_path / "nowhere"), *given]) == 2
    assert "there is no such store; name one with --from" in capsys.readouterr().err
    assert main(["branch", "--run", str(tmp_path / "runn"), *given]) == 2
    says = capsys.readouterr().err
    assert "runn' is no run, it has no r3.toml; did you mean 'run'?" in says
    assert "new run" not in says
    assert not (tmp_path / "runn").exists()


def test_branch_takes_failed_retries_with_a_third_try(produced: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    run = Run(tmp_path / "run", {**settings, "branch.source": str(produced), "collect.max_attempts": 3})
    failures = run.failures().begins
    by_length = Counter(len(begin.spans) for begin in failures)
    assert by_length == dict.fromkeys((1, 3), sum(split_of(t.task.id) == "train" for t in load(produced)))
    run.branch()
    deep = [t for t in load(run.directory / "trajectories") if len(t.recorded) == 3]
    assert len(deep) == by_length[3]
    reflections = [span for branch in deep for span in branch.sampled if span.label == "reflect"]
    assert {span.parent_id for span in reflections} == {branch.spans[2].span_id for branch in deep}


def test_branch_leaves_out_groups_that_this_version_drew(settings: dict[str, Any], tmp_path: Path) -> None:
    run = Run(tmp_path / "run", settings)
    run.collect()
    with pytest.raises(ConfigError, match=r"2 left out, drawn: .* raise --reflections"):
        run.branch()
    assert Run(run.directory, {**settings, "collect.reflections": 6}).branch().branches == 2


def test_branch_that_is_killed_goes_on(settings: dict[str, Any], produced: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    Run(run, {**settings, "branch.source": str(produced), "collect.concurrency": 1}).ensure_live()
    command = [sys.executable, "-m", "r3agent", "branch", "--run", str(run), "--json"]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    while process.poll() is None and not any(shard.stat().st_size for shard in run.glob("trajectories/*.jsonl")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {t.trajectory_id for t in load(run)}
    report = Run(run).branch()
    lines = [line for shard in run.glob("trajectories/*.jsonl") for line in shard.read_bytes().splitlines()]
    ids = [orjson.loads(line)["trajectory_id"] for line in lines if line.endswith(b"}")]
    assert 0 < len(before) < report.branches == len(ids) == len({*ids})
    assert (report.summary.resumed, before < {*ids}) == (len(before), True)
