"""Spans of a training and its steps."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from r3agent.records.trajectory import Trajectory
from r3agent.train import PolicyStart
from tests.support.exported import Exported, has
from tests.support.exported import exported as exported
from tests.train.versions import OUTCOMES, run

Record = Callable[..., list[Trajectory]]


def test_training_steps_name_the_trajectories_they_are_of(
    record: Record, start: PolicyStart, tmp_path: Path, exported: Exported
) -> None:
    trajectories = record(OUTCOMES)
    card = run(trajectories, start, tmp_path / "v0001", epochs=2, batch_size=2)
    training = exported.one("train v0001")
    steps = exported.children(training)
    assert [has(step)["r3agent.train.step"] for step in steps] == [*range(1, card.metrics["steps"] + 1)]
    for epoch in (steps[: len(steps) // 2], steps[len(steps) // 2 :]):
        ids = {trajectory_id for step in epoch for trajectory_id in has(step)["r3agent.trajectory.ids"]}
        assert ids == {trajectory.trajectory_id for trajectory in trajectories}
    assert len(has(steps[0])["r3agent.trajectory.ids"]) < len(trajectories)
    assert {has(step)["r3agent.policy.version"] for step in steps} == {"v0001"}
    assert all(isinstance(has(step)["r3agent.train.loss"], float) for step in steps)
    assert all(one.end_time <= other.start_time for one, other in pairwise(steps))
