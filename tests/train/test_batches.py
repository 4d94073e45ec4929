"""Rows from a store that is read in batches are those of all trajectories at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from r3agent.errors import TrainingError
from r3agent.records.trajectory import EpisodeError, Task, Trajectory
from r3agent.store.batches import StoredTrajectories
from r3agent.store.labels import label
from r3agent.store.shards import TrajectoryWriter
from r3agent.store.trajectories import load
from r3agent.train import TrainConfig, build_rows, to_dataset
from r3agent.train.rows import file_rows

Record = Callable[..., list[Trajectory]]
SCALES = ("group", "batch", "none")


@pytest.fixture
def store(tmp_path: Path, record: Record) -> Path:
    """A store whose episodes of one task are in several shards, with an error, a label and an episode run again."""
    made = [
        t.changed(trajectory_id=f"e{i}-{sample}", task=Task(id=f"task {i}", messages=t.task.messages), sample=sample)
        for sample in range(2)
        for i, t in enumerate(record([[1, 0, 0, 0], [1, 1, 0], [0, 0], [1]]))
    ]
    failed = made[0].changed(error=EpisodeError(kind="VerifierError", message="no"))
    for part in ([failed, *made[1:4]], [made[0], *made[4:7]], made[7:], [failed.changed(trajectory_id="other")]):
        with TrajectoryWriter(tmp_path) as writer:
            for trajectory in part:
                writer.append(trajectory)
    retry = next(span for span in made[2].spans if span.label == "retry")
    label(tmp_path, made[2], span_id=retry.span_id, passed=True)
    return tmp_path


@pytest.mark.parametrize("settings", [{"scale_rewards": scale} for scale in SCALES] + [{"baseline": "batch"}])
@pytest.mark.parametrize("size", [1, 4, 2000])
def test_rows_in_batches_are_the_rows_of_all(store: Path, settings: Any, size: int) -> None:
    credit: Any = {"reflect": "retry_success", "retry": "success", "attempt": "success"}
    config = TrainConfig(recipe="paper", credit=credit, **settings)
    rows, report = build_rows(load(store), config=config, version="v0000")
    stored = StoredTrajectories(store, size=size)
    assert sorted(t.trajectory_id for t in stored) == sorted(t.trajectory_id for t in load(store))
    in_batches, merged = build_rows(stored, config=config, version="v0000")
    filed, of_file = file_rows(stored, config=config, version="v0000")
    assert (list(filed), of_file) == (in_batches, merged)
    assert [filed[i] for i in range(len(filed))] == filed[:] == in_batches
    assert filed.dataset.to_list() == to_dataset(in_batches).to_list()
    assert sorted(in_batches) == sorted(rows)
    assert merged == report
    assert (in_batches == rows) or size < 2000


def test_rows_of_a_store_without_any_are_explained(tmp_path: Path, record: Record) -> None:
    with TrajectoryWriter(tmp_path) as writer:
        for i, trajectory in enumerate(record([[0, 0], [1, 1], [0, 0]])):
            writer.append(trajectory.changed(task=Task(id=f"task {i}", messages=trajectory.task.messages)))
    config = TrainConfig(recipe="paper")
    with pytest.raises(TrainingError) as whole:
        build_rows(load(tmp_path), config=config, version="v0000")
    with pytest.raises(TrainingError) as batched:
        build_rows(StoredTrajectories(tmp_path, size=1), config=config, version="v0000")
    assert str(batched.value) == str(whole.value)


@pytest.mark.parametrize("id_", [2**31, 2**63])
def test_rows_in_a_file_are_refused_with_ids_of_no_model(store: Path, id_: int) -> None:
    def changed(batch: list[Trajectory]) -> list[Trajectory]:
        huge = {"token_ids": (id_, 1, 1), "logprobs": (-1.0,) * 3}
        return [t.changed(spans=tuple(s.model_copy(update=huge) for s in t.spans)) for t in batch]

    with pytest.raises(TrainingError, match=rf"has token id {id_}, limit 2\*\*31"):
        file_rows(StoredTrajectories(store, changed), config=TrainConfig(recipe="paper"), version="v0000")


def test_rows_in_a_file_have_no_temperature_that_is_text(store: Path) -> None:
    def changed(batch: list[Trajectory]) -> list[Trajectory]:
        sent = {"sampling": {"temperature": "0.7"}, "capability": "trainable-retokenised"}
        return [t.changed(spans=tuple(s.model_copy(update=sent) for s in t.spans)) for t in batch]

    config = TrainConfig(recipe="paper", retokenise="allow")
    stored = StoredTrajectories(store, changed)
    rows, report = file_rows(stored, config=config, version="v0000", retokenise=lambda t, span: ([1], [2]))
    assert {row.temperature for row in rows} == {None}
    assert report.temperatures == {"None": len(rows)}
