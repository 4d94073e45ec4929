"""The gate of a run: batches of fresh tasks until it can decide, also after it was killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from r3agent.errors import ConfigError
from r3agent.records.trajectory import Task
from r3agent.run.stages import Run
from r3agent.store.history import history
from r3agent.store.trajectories import load
from tests.deploy import endpoint as weights
from tests.support.chatting import ChattingEndpoint, subject

N_TASKS = 28
GATE = {"eval.n": 4, "eval.split": "test", "gate.split": "all", "gate.n": 24, "gate.batch": 8}


REFUSED: list[str] = []


class Killed(BaseException):
    """The process ended here."""


def reply(body: dict[str, Any]) -> str:
    """The base is never right; a version is after a reflection, v0002 only on every second task."""
    said = [m["content"] for m in body["messages"]]
    if "Reflect" in said[-1]:
        return "use the tables"
    number = int("".join(c for c in said[0].split(":")[0] if c.isdigit()) or 0)
    learnt = body["model"] == "tiny@v0001" or (body["model"] == "tiny@v0002" and number % 2 == 0)
    return "6" if learnt and "use the tables" in said else "5"


def refuse(task: Task, answer: str) -> bool:
    """A strict verifier."""
    REFUSED.append(task.id)
    return False


@pytest.fixture
def settings(endpoint: ChattingEndpoint, tmp_path: Path) -> dict[str, Any]:
    return {**subject(endpoint, tmp_path, N_TASKS), **GATE}


def opened(directory: Path, settings: dict[str, Any], **changes: Any) -> Run:
    """A run with two versions."""
    run = Run(directory, {**settings, **{key.replace("__", "."): value for key, value in changes.items()}})
    run.ensure_live()
    for number in range(len(run.registry.versions()), 3):
        weights.Run(run.registry, Path(run.config.policy.base_model)).train("lora", seed=number)
    return run


def decided_on(run: Run, version: str) -> list[str]:
    return sorted({t.task.id for t in load(run.directory / "gate" / version / "v0000")})


def test_gate_ends_when_the_evidence_is_in(settings: dict[str, Any], tmp_path: Path) -> None:
    run = opened(tmp_path / "run", settings)
    found = run.evaluate("v0000", "v0001", for_gate=True)
    assert (found.draw and (found.draw.planned, found.draw.gains)) == (24, (1.0,) * 8)
    assert run.decide(found).promote
    assert run.comparison("v0000", "v0001", for_gate=True) == found


def test_gate_gives_up_a_version_that_is_no_better(settings: dict[str, Any], tmp_path: Path) -> None:
    run = opened(tmp_path / "run", settings)
    found = run.evaluate("v0001", "v0002", for_gate=True)
    decision = run.decide(found)
    assert (found.draw and len(found.draw.gains), decision.promote) == (8, False)
    assert decision.evidence is not None
    assert decision.evidence.futile
    for _ in range(2):
        run.record_decision("v0001", "v0002", decision)
    compared, decided = history(run.registry.policies_dir, "v0002")  # the same decision is recorded once
    assert (decided.event, decided.file, decided.alpha) == ("failed", compared.file, run.config.gate.alpha)


def test_gate_takes_the_tasks_of_a_small_split_in_random_order(settings: dict[str, Any], tmp_path: Path) -> None:
    """Else one that is better on the first tasks of a sorted file alone would pass."""
    orders: list[list[str]] = []
    for before, after in (("v0000", "v0001"), ("v0000", "v0002")):
        run = opened(tmp_path / "run", settings, gate__n=N_TASKS)
        run.evaluate(before, after, for_gate=True)
        [whole] = (run.directory / "gate" / after).glob("whole.*.json")
        orders.append(json.loads(whole.read_text())["tasks"])
    of_file = [str(i) for i in range(N_TASKS)]
    assert [sorted(order, key=int) for order in orders] == [of_file, of_file]
    assert orders[0] != of_file
    assert {*orders[1][-8:]} == {*orders[0][:8]}  # those that decided before come last
    assert orders[1][:20] != sorted(orders[1][:20], key=int)


def test_fixed_gate_compares_all_tasks_at_once(settings: dict[str, Any], tmp_path: Path) -> None:
    run = opened(tmp_path / "run", settings, gate__test="fixed")
    found = run.evaluate("v0000", "v0001", for_gate=True)
    assert (found.draw, found.baseline.n_tasks) == (None, 24)
    assert "p = 1.2e-07" in run.decide(found).reasons[1]


def test_killed_gate_goes_on_in_the_same_batches(
    settings: dict[str, Any], tmp_path: Path, endpoint: ChattingEndpoint
) -> None:
    whole = opened(tmp_path / "whole", settings).evaluate("v0000", "v0002", for_gate=True)
    n = 0

    def kill(done: int, total: int) -> None:
        nonlocal n
        n += 1
        if n >= 20:  # in the second batch
            raise Killed

    run = opened(tmp_path / "killed", settings)
    with pytest.raises(Killed):
        run.evaluate("v0000", "v0002", kill, for_gate=True)
    assert run.comparison("v0000", "v0002", for_gate=True) is None
    stored = {t.trajectory_id: t for t in load(run.directory / "gate" / "v0002" / "v0000")}
    again = opened(tmp_path / "killed", settings)
    found = again.evaluate("v0000", "v0002", for_gate=True)
    assert (found.draw, again.decide(found)) == (whole.draw, again.decide(whole))
    after = {t.trajectory_id: t for t in load(run.directory / "gate" / "v0002" / "v0000")}
    assert stored.items() <= after.items()
    asked = len(endpoint.chats)
    assert again.evaluate("v0000", "v0002", for_gate=True) == found
    assert len(endpoint.chats) == asked


def test_smaller_batches_are_a_part_of_larger_ones(settings: dict[str, Any], tmp_path: Path) -> None:
    found = [
        opened(tmp_path / str(batch), settings, gate__batch=batch).evaluate("v0000", "v0002", for_gate=True).draw
        for batch in (4, 24)
    ]
    small, large = [draw.gains for draw in found if draw is not None]
    assert len(small) < len(large) == 24
    assert large[: len(small)] == small


def test_no_task_decides_twice_while_there_are_others(
    settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"gate__n": 16, "gate__batch": 16}
    run = opened(tmp_path / "run", settings, **changes)
    first = run.evaluate("v0000", "v0001", for_gate=True)
    assert "decided on an earlier version" not in caplog.text
    second = run.evaluate("v0001", "v0002", for_gate=True)
    assert "4 of 16 tasks of the gate of v0002 decided on an earlier version too: split all of" in caplog.text
    assert len({*decided_on(run, "v0001"), *(t.task.id for t in load(run.directory / "gate/v0002/v0002"))}) == N_TASKS
    later = opened(tmp_path / "run", settings, gate__n=8)
    assert later.comparison("v0000", "v0001", for_gate=True) == first
    assert later.comparison("v0001", "v0002", for_gate=True) == second


def test_gate_says_before_it_samples_what_few_tasks_cost(
    settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, endpoint: ChattingEndpoint
) -> None:
    few = {"gate__n": 100}
    opened(tmp_path / "fixed", settings, **few, gate__test="fixed").check_gate()
    opened(tmp_path / "run", settings).check_gate()  # the split has as many tasks as the gate wants
    assert "sequential test" not in caplog.text
    run, asked = opened(tmp_path / "few", settings, **few), len(endpoint.chats)
    run.check_gate()
    assert "the gate has 28 of 100 tasks: if 20% of the outcomes differ, its sequential test finds" in caplog.text
    assert 'a gain of 30.0 points with 80%, and gate.test = "fixed" a gain of 26.8 points; set that' in caplog.text
    assert len(endpoint.chats) == asked


def test_second_verifier_judges_the_answers_too(settings: dict[str, Any], tmp_path: Path) -> None:
    run = opened(tmp_path / "run", settings, gate__verifier=f"{__name__}:refuse")
    found = run.evaluate("v0000", "v0001", for_gate=True)
    decision = run.decide(found)
    assert found.disagreement is not None, found
    assert (found.disagreement.points, decision.promote) == (pytest.approx(100 / 3), False)
    [(condition, shown)] = decision.examples.items()
    assert "answers that a second verifier refuses +33.3 points" in condition
    assert [e.excerpt for e in shown] == ["6"] * 3
    with pytest.raises(ConfigError, match=r"gate.verifier = 'person' cannot judge stored answers"):
        opened(tmp_path / "run", settings, gate__verifier="person").check_gate()


def test_second_verifier_judges_each_answer_once(settings: dict[str, Any], tmp_path: Path) -> None:
    """A gate of several batches looks at the first ones again."""
    run = opened(tmp_path / "run", settings, gate__verifier=f"{__name__}:refuse")
    REFUSED.clear()
    found = run.evaluate("v0000", "v0002", for_gate=True)
    assert (found.draw and len(found.draw.gains), found.disagreement is not None) == (24, True)
    versions = [load(run.directory / "gate" / "v0002" / version) for version in ("v0000", "v0002")]
    assert len(REFUSED) == sum(len(t.tries) for version in versions for t in version)


def test_comparison_of_an_earlier_release_is_found(settings: dict[str, Any], tmp_path: Path) -> None:
    """It names no tasks, and has no order of them."""
    run = opened(tmp_path / "run", settings, gate__test="fixed")
    found = run.evaluate("v0000", "v0001", for_gate=True)
    [path] = (run.directory / "gate" / "v0001").glob("v0000-v0001.*.json")
    (whole,) = path.parent.glob("whole.*.json")
    whole.unlink()
    assert "tasks" not in json.loads(path.read_text())
    read = opened(tmp_path / "run", settings).comparison("v0000", "v0001", for_gate=True)
    assert read is not None
    assert (read.after_reflection, read.baseline.n_tasks) == (found.after_reflection, 24)
