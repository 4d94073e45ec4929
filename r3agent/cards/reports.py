"""Report of a policy version: all that is recorded of it, from its card to its evaluations and its deploys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from r3agent._util.checked import checked
from r3agent.data.ancestry import lineage
from r3agent.errors import RecordError
from r3agent.evaluate import Comparison, Difference, Evaluation, Rate
from r3agent.evaluate.comparison import read_stored
from r3agent.records.record import Record
from r3agent.store.batches import StoredTrajectories
from r3agent.store.history import Event, history
from r3agent.store.provenance import (
    Provenance,
    episode_sha256,
    read_episodes,
    read_provenance,
    weight_hashes,
)
from r3agent.store.registry import PolicyCard, PolicyKind, Registry
from r3agent.store.shards import store_of_run


class TrainedEpisode(Record):
    """Episode that a version was trained on."""

    id: str
    sha256: str | None = None
    """Hash of the episode with its verdicts at that time; `None` if it was not recorded, or the episode forgotten."""
    forgotten: bool = False


class VersionEvaluation(Record):
    """Comparison of a version with an earlier one, on the same tasks."""

    baseline: str
    candidate: str
    purpose: Literal["gate", "final"]
    split: str
    file: str
    """File of the whole comparison, relative to the run directory."""
    at: str | None
    """Time of the comparison; `None` if the history does not have it."""
    n_tasks: int
    rates: dict[str, Rate]
    """Rates of the candidate, by cell."""
    baseline_rates: dict[str, Rate]
    differences: dict[str, Difference]
    """Paired differences, candidate minus baseline, by cell."""


class VersionReport(Record):
    """Report of a policy version."""

    version: str
    parent: str | None
    kind: PolicyKind
    name: str
    """Served name of the base model."""
    served_name: str
    base_model: str
    created_at: str
    live: bool
    passed: bool
    """True if it became live because it passed the gate."""
    episodes: tuple[TrainedEpisode, ...] | None
    """Episodes it was trained on; `None` for the base, if they were not written down, or without `episodes`."""
    provenance: Provenance | None
    """`None` for the base, or if an earlier release trained it."""
    settings: dict[str, Any]
    metrics: dict[str, Any]
    fingerprint_tokens: int
    """Number of tokens by which a server's weights are recognised; the card has them."""
    evaluations: tuple[VersionEvaluation, ...]
    """Comparisons with earlier versions, oldest first."""
    history: tuple[Event, ...]


class VersionCheck(Record):
    """Comparison of a version's hashes with the files that are there."""

    version: str
    weights_changed: tuple[str, ...]
    """Files that are missing, or differ from those that were trained."""
    episodes_changed: tuple[str, ...]
    """Episodes that are stored otherwise than they were trained on, e.g. with another verdict."""
    episodes_missing: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not (self.weights_changed or self.episodes_changed or self.episodes_missing)


@checked
def describe(run: str | Path, version: str, *, episodes: bool = True) -> VersionReport:
    """Report all that is recorded of a policy version.

    Args:
        episodes: list the episodes that it was trained on.

    Raises:
        ConfigError: there is no such run or version.
        RecordError, SchemaVersionError: a file cannot be read.
    """
    registry = _registry(run)
    return _describe(registry, registry.card(version), _evaluations(registry), episodes=episodes)


@checked
def list_versions(run: str | Path) -> tuple[VersionReport, ...]:
    """Report all versions of a run, oldest first, without their episodes.

    Raises:
        ConfigError: there is no such run.
        RecordError, SchemaVersionError: a file cannot be read.
    """
    registry = _registry(run)
    evaluations = _evaluations(registry)
    return tuple(
        _describe(registry, registry.card(version), evaluations, episodes=False) for version in registry.versions()
    )


@checked
def check_version(run: str | Path, version: str) -> VersionCheck:
    """Compare the hashes of a version's weights and episodes with the files of the run.

    Raises:
        ConfigError: there is no such run or version.
        RecordError: no hashes were recorded, or a file cannot be read.
    """
    registry = _registry(run)
    registry.card(version)  # raises if there is none
    directory = registry.version_dir(version)
    provenance, trained = read_provenance(directory), read_episodes(directory)
    if provenance is None:
        raise RecordError(f"{version} has no hashes: it is the base, or an earlier release trained it")
    found = weight_hashes(directory)
    stored = {t.trajectory_id: episode_sha256(t) for t in StoredTrajectories(run) if t.trajectory_id in trained}
    return VersionCheck(
        version=version,
        weights_changed=tuple(name for name, sha in provenance.weights.items() if found.get(name) != sha),
        episodes_changed=tuple(id_ for id_, sha in trained.items() if stored.get(id_, sha) != sha),
        episodes_missing=tuple(id_ for id_ in trained if id_ not in stored),
    )


def _registry(run: str | Path) -> Registry:
    registry = Registry(run)
    if not registry.policies_dir.is_dir():
        store_of_run(Path(run))  # raises if it is no run
    return registry


def _describe(
    registry: Registry, card: PolicyCard, evaluations: Iterable[VersionEvaluation], *, episodes: bool
) -> VersionReport:
    directory = registry.version_dir(card.version)
    return VersionReport(
        **card.model_dump(include={"version", "parent", "kind", "name", "base_model", "created_at"}),
        served_name=card.served_name,
        live=card.version == registry.live,
        passed=card.version in registry.passed,
        episodes=_episodes(registry, card.version) if episodes else None,
        provenance=read_provenance(directory),
        settings=card.settings,
        metrics=card.metrics,
        fingerprint_tokens=sum(len(s.positions_K or s.token_ids_T[1:]) for s in card.fingerprint),
        evaluations=tuple(one for one in evaluations if one.candidate == card.version),
        history=tuple(history(registry.policies_dir, card.version)),
    )


def _episodes(registry: Registry, version: str) -> tuple[TrainedEpisode, ...] | None:
    trained = lineage(registry.run_dir, version).versions[0]
    if trained.episodes is None:
        return None
    hashes, gone = read_episodes(registry.version_dir(version)), {*trained.forgotten}
    return tuple(TrainedEpisode(id=id_, sha256=hashes.get(id_), forgotten=id_ in gone) for id_ in trained.episodes)


def _evaluations(registry: Registry) -> list[VersionEvaluation]:
    run = registry.run_dir
    times = {event.file: event.at for event in history(registry.policies_dir) if event.event == "evaluated"}
    found = [
        _evaluation(path, run, times)
        for path in sorted([*run.glob("eval/v*-v*.json"), *run.glob("gate/v*/v*-v*.json")])
    ]
    return sorted(found, key=lambda one: one.at or "")


def _evaluation(path: Path, run: Path, times: dict[str | None, str]) -> VersionEvaluation:
    file, comparison = path.relative_to(run).as_posix(), read_stored(path).comparison
    versions, split, *_ = path.name.split(".")
    baseline, candidate = versions.split("-")
    return VersionEvaluation(
        baseline=baseline,
        candidate=candidate,
        purpose="gate" if file.startswith("gate/") else "final",
        split=split,
        file=file,
        at=times.get(file),
        n_tasks=comparison.candidate.n_tasks,
        rates=dict(_fields(comparison.candidate, Rate)),
        baseline_rates=dict(_fields(comparison.baseline, Rate)),
        differences=dict(_fields(comparison, Difference)),
    )


def _fields(record: Comparison | Evaluation, kind: type[Any]) -> Iterator[tuple[str, Any]]:
    """Yield the fields of a kind that are there, so that a report has every cell that an evaluation has."""
    for name in type(record).model_fields:
        if isinstance(value := getattr(record, name), kind):
            yield name, value
