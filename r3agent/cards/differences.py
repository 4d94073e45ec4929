"""Differences between two versions: settings, packages, hashes, episodes, metrics and rates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from r3agent._util.checked import checked
from r3agent.cards.reports import VersionEvaluation, VersionReport, describe
from r3agent.records.record import Record


class VersionDiff(Record):
    """Differences between two versions."""

    version: str
    other: str
    changed: dict[str, tuple[Any, Any]]
    """Values of `version` and `other` that differ, by dotted key; `None` where one has none."""
    episodes_of_both: int
    episodes_only: tuple[int, int]
    """Number of episodes that only the one, and only the other was trained on."""
    comparisons: tuple[VersionEvaluation, ...]
    """Comparisons of the two on the same tasks."""


@checked
def diff_versions(run: str | Path, version: str, other: str) -> VersionDiff:
    """Compare what is recorded of two versions of a run.

    Raises:
        ConfigError, RecordError, SchemaVersionError: as `describe`.
    """
    one, two = describe(run, version), describe(run, other)
    flat_one, flat_two = dict(_facts(one)), dict(_facts(two))
    ids_one, ids_two = ({e.id for e in report.episodes or ()} for report in (one, two))
    pair = {version, other}
    return VersionDiff(
        version=version,
        other=other,
        changed={
            key: (flat_one.get(key), flat_two.get(key))
            for key in sorted(flat_one.keys() | flat_two.keys())
            if flat_one.get(key) != flat_two.get(key)
        },
        episodes_of_both=len(ids_one & ids_two),
        episodes_only=(len(ids_one - ids_two), len(ids_two - ids_one)),
        comparisons=tuple(e for e in (*one.evaluations, *two.evaluations) if {e.baseline, e.candidate} == pair),
    )


def _facts(report: VersionReport) -> Iterator[tuple[str, Any]]:
    """Yield the values to compare, of nested ones each by its dotted key."""
    yield from _flat("", report.model_dump(mode="json", include={"parent", "kind", "base_model", "passed"}))
    yield from _flat("settings.", report.settings)
    yield from _flat("metrics.", report.metrics)
    if report.provenance is not None:
        yield from _flat("", report.provenance.model_dump(include={"packages", "made_with"}))
    for evaluation in report.evaluations:  # the newest of a kind wins
        for cell, rate in evaluation.rates.items():
            yield f"{evaluation.purpose}.{evaluation.split}.{cell}", rate.rate


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", value
