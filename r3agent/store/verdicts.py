"""Layers of verdicts of verifiers on stored answers, in an append-only file beside the labels.

A layer is the work of one verifier with its settings. `load` merges them in their order, below the labels of people;
the verdicts in the shards never change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field

from r3agent.records.trajectory import Trajectory, Try, Verdict, VersionedRecord
from r3agent.store.reading import LABELS, records
from r3agent.store.shards import store_at

PEOPLE = "people"
"""Source of the verdicts of labels."""

RECORDED = "recorded"
"""Source of recorded verdicts whose verifier the record does not name."""


class SpanVerdict(VersionedRecord):
    """Verdict of a layer on one span."""

    schema_version: Literal[1] = 1
    layer: int = Field(ge=1)
    verifier: str
    settings: str
    """Digest of the verifier's parameters, and of the treatment of answers that were cut off."""
    trajectory_id: str
    span_id: str
    verdict: Verdict | None
    """`None` if the verifier left it open: the verdict below counts, of another layer or as recorded."""
    judged_at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def place(self) -> tuple[str, str]:
        return self.trajectory_id, self.span_id


def verdicts_path(directory: str | Path) -> Path:
    """Return the file of the layers of a store."""
    return Path(directory) / LABELS / "verdicts.jsonl"


def read_layers(directory: str | Path) -> list[SpanVerdict]:
    """Read the verdicts of all layers, in order of the layers."""
    path = verdicts_path(store_at(directory))
    return sorted(records([path], SpanVerdict), key=lambda verdict: verdict.layer) if path.is_file() else []


def merged(layers: Iterable[SpanVerdict]) -> dict[tuple[str, str], Verdict]:
    """Return the verdict that counts of each span that is judged by a layer."""
    return {verdict.place: verdict.verdict for verdict in layers if verdict.verdict is not None}


def verifiers_of(layers: Iterable[SpanVerdict]) -> dict[tuple[str, str], str]:
    """Return the verifier whose verdict counts of each span that is judged by a layer."""
    return {verdict.place: verdict.verifier for verdict in layers if verdict.verdict is not None}


def verdict_source(trajectory: Trajectory, a_try: Try, verifiers: Mapping[tuple[str, str], str]) -> str | None:
    """Return the verifier whose verdict on a try counts, `people` for a label, or `None` without a verdict.

    Args:
        verifiers: those of the layers, by span.
    """
    if a_try.verdict is None:
        return None
    if a_try.verdict.by is not None:
        return PEOPLE
    return verifiers.get((trajectory.trajectory_id, a_try.last.span_id)) or trajectory.verifier or RECORDED


def verdict_sources(trajectory: Trajectory, verifiers: Mapping[tuple[str, str], str]) -> list[str]:
    """Return the `verdict_source` of each try with a verdict."""
    return [source for a_try in trajectory.tries if (source := verdict_source(trajectory, a_try, verifiers))]


def with_verdicts(trajectory: Trajectory, verdicts: Mapping[tuple[str, str], Verdict]) -> Trajectory:
    """Put verdicts in place of the recorded ones."""
    found = [verdicts.get((trajectory.trajectory_id, span.span_id)) for span in trajectory.spans] if verdicts else []
    if not any(found):
        return trajectory
    pairs = zip(trajectory.spans, found, strict=True)
    return trajectory.changed(spans=tuple(s.model_copy(update={"verdict": v}) if v else s for s, v in pairs))
