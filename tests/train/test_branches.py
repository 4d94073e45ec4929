"""Tries that branches of one episode share: each counts once, with what follows it in any of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from r3agent.errors import TrainingError
from r3agent.records.trajectory import RECORDED, Trajectory, Verdict
from r3agent.train import Row, TrainConfig, build_rows

Record = Callable[..., list[Trajectory]]


@pytest.fixture
def branched(record: Record) -> list[Trajectory]:
    """A failed first try and two of its reflections, and branches with one more: by time travel, and of the record."""
    (whole,) = record([[0, 1, 1, 0]])
    spans = {span.span_id: span for span in whole.spans}

    def tree(trajectory_id: str, numbers: Sequence[int], **fields: Any) -> Trajectory:
        names = ["a", *(name for i in numbers for name in (f"r{i}", f"t{i}a"))]
        return whole.changed(trajectory_id=trajectory_id, spans=tuple(spans[name] for name in names), **fields)

    recorded = {RECORDED: ["a", "r0", "t0a"]}
    first, second = tree("e0", (0, 1)), tree("b1", (2,), parent_id="e0")
    return [first, second, tree("b2", (0, 3), parent_id="e0", metadata=recorded)]


def build(trajectories: list[Trajectory], **settings: Any) -> list[Row]:
    config = TrainConfig.model_validate({"recipe": "paper", **settings})
    return build_rows(trajectories, config=config, version="v0000")[0]


def test_retries_of_all_branches_are_distilled(branched: list[Trajectory]) -> None:
    first = branched[0].spans[0]
    rows = build(branched, credit={}, distill=1.0)
    assert [(row.trajectory_id, row.span_id, row.advantage) for row in rows] == [("e0", "t1a", 1), ("b1", "t2a", 1)]
    assert {tuple(row.prompt_ids_P) for row in rows} == {first.prompt_token_ids}
    assert len({row.group_id for row in rows}) == 1


def test_edited_first_tries_have_their_own_retries_alone(branched: list[Trajectory]) -> None:
    origin, branch = branched[:2]
    edited = branch.changed(spans=(branch.spans[0].model_copy(update={"text": "edited"}), *branch.spans[1:]))
    rows = build([origin, edited], credit={}, distill=1.0)
    assert [(row.trajectory_id, row.span_id) for row in rows] == [("b1", "t2a")]


def test_tries_that_branches_share_are_imitated_once(branched: list[Trajectory]) -> None:
    origin, branch, _ = (t.changed(spans=t.spans[:3]) for t in branched)
    both = [replace(t, "a", passed=True) for t in (origin, branch)]
    assert [(row.trajectory_id, row.span_id) for row in build(both, credit={}, imitate=1.0)] == [("b1", "a")]
    with pytest.raises(TrainingError, match="imitate: no try passed"):  # the verdict of the last one counts
        build([both[0], replace(branch, "t2a", passed=False)], credit={}, imitate=1.0)
    apart = both[1].changed(parent_id=None)  # another episode
    assert len(build([both[0], apart], credit={}, imitate=1.0)) == 2


def replace(trajectory: Trajectory, span_id: str, *, passed: bool) -> Trajectory:
    """The same tree with another verdict on a span."""
    verdict = Verdict(passed=passed, score=float(passed))
    changed = {s.span_id: s.model_copy(update={"verdict": verdict}) for s in trajectory.spans if s.span_id == span_id}
    return trajectory.changed(spans=tuple(changed.get(s.span_id, s) for s in trajectory.spans))
