"""Stores of more than one batch: what reads them in parts finds what reading all of it finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r3agent import Trajectory, label, load
from r3agent.cli.main import main
from r3agent.data import export, stats
from r3agent.episodes.failures import choose
from r3agent.records.trajectory import EpisodeError
from r3agent.store.batches import BATCH, StoredTrajectories
from r3agent.store.shards import TrajectoryWriter
from r3agent.train import TrainConfig, credit_spans
from r3agent.train.rows import why_untrainable

from .stores import collected, question

TASKS, SAMPLES = BATCH // 3 + 10, 3


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three episodes each of more tasks than a batch has, one of which ended with an error and one labelled."""
    (made,) = collected(tmp_path_factory.mktemp("one"), "a", source="s.jsonl", split="train")
    store = tmp_path_factory.mktemp("large")
    for sample in range(SAMPLES):  # so that the episodes of a task are in three shards
        with TrajectoryWriter(store, fsync="never") as writer:
            for i in range(TASKS):
                id_ = f"{i:04d}-{sample}"
                writer.append(made.changed(trajectory_id=id_, sample=sample, task=question(f"task {i}")))
    with TrajectoryWriter(store) as writer:
        error = EpisodeError(kind="VerifierError", message="no")
        writer.append(made.changed(trajectory_id="zz", task=question("task 0"), error=error))
    retry = next(span for span in made.spans if span.passed is False and span.label == "retry")
    label(store, f"{TASKS - 1:04d}-2", span_id=retry.span_id, passed=True, by="me")
    return store


def every(store: Path) -> list[Trajectory]:
    found = load(store)
    assert len(found) == TASKS * SAMPLES + 1 > BATCH
    return found


def test_stats_count_every_batch(large: Path) -> None:
    found, n = stats(large), TASKS * SAMPLES
    assert (found.episodes, found.tasks, found.groups, found.attempt_groups) == (n + 1, TASKS, n, TASKS)
    assert found.outcomes == {"passed": n, "errored": 1}
    assert (found.groups_with_variance, found.attempt_groups_with_variance) == (n - 1, 0)
    assert found.labels == {"attempt": n + 1, "reflect": 2 * n + 2, "retry": 2 * n + 2}
    first = found.pass_rates["first_try"]
    assert (first.rate, first.n_tasks) == (0.0, TASKS)
    assert found.pass_rates["retry_after_reflection"].rate == pytest.approx(0.5, abs=1e-3)


def test_export_writes_every_batch(large: Path, tmp_path: Path) -> None:
    for given in (every(large), StoredTrajectories(large)):
        found = export(given, tmp_path / type(given).__name__, to="trl", type="preference")
        assert (found.rows, found.episodes, found.left_out) == (
            TASKS * SAMPLES - 1,
            TASKS * SAMPLES + 1,
            {"errored": 1},
        )
    lines = [sorted(path.read_bytes().splitlines()) for path in tmp_path.iterdir()]
    assert lines[0] == lines[1]


def test_choose_finds_the_failures_of_every_batch(large: Path) -> None:
    whole, found = choose(every(large), seed=3), choose(StoredTrajectories(large), seed=3)
    assert [t.parent_id for t in found.begins] == [t.parent_id for t in whole.begins]
    assert (found.read, found.left_out) == (whole.read, whole.left_out)


@pytest.mark.parametrize("changed", [{}, {"scale_rewards": "batch"}, {"baseline": "batch", "scale_rewards": "none"}])
def test_inspect_credits_among_every_batch(
    large: Path, changed: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    id_ = f"{TASKS - 2:04d}-1"
    settings = {"retokenise": "allow", **changed}
    flags = [part for name, value in settings.items() for part in ("--set", f"train.{name}={value}")]
    assert main(["inspect", str(large), id_, "--json", *flags]) == 0
    spans = json.loads(capsys.readouterr().out)["spans"]
    config = TrainConfig.model_validate({"recipe": "paper", **settings})
    credited = credit_spans(
        every(large), config=config, version="v0000", retokenise=lambda trajectory, span: ([0], [0])
    )
    expected = {row.span_id: row.advantage for row in credited.rows if row.trajectory_id == id_}
    assert {span["span_id"]: span["credit"] for span in spans if span["credit"] is not None} == expected
    assert len(expected) == 2


def test_inspect_lists_every_batch(large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(large), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["episodes"], len(found["failed"]), len(found["overruled"])) == (
        TASKS * SAMPLES + 1,
        TASKS * SAMPLES,
        1,
    )
    assert main(["inspect", str(large), f"{TASKS - 1:04d}-9"]) == 2
    assert f"did you mean '{TASKS - 1:04d}-" in capsys.readouterr().err


def test_why_untrainable_is_the_reason_of_every_batch(large: Path) -> None:
    config = TrainConfig(recipe="paper")
    reasons = [why_untrainable(t, config=config, version="v0000") for t in (every(large), StoredTrajectories(large))]
    assert reasons[0] == reasons[1]
    assert reasons[0] is None or f"{TASKS * SAMPLES}" in reasons[0]
