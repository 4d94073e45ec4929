"""Lineage of a policy version: the episodes that it and its ancestors were trained on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import orjson

from r3agent._util.checked import checked
from r3agent._util.messages import nearest
from r3agent.data.receipts import receipts
from r3agent.data.selection import shown_keys
from r3agent.errors import ConfigError
from r3agent.records.record import Record
from r3agent.store.registry import PolicyKind, Registry
from r3agent.store.shards import read, store_of_run
from r3agent.train.lineage import ROWS_FILE, ancestry


class Trained(Record):
    """A version and the episodes that it was trained on."""

    version: str
    parent: str | None
    kind: PolicyKind
    created_at: str
    episodes: tuple[str, ...] | None
    """Ids, those that were forgotten since included; `None` if the version does not say, as the base."""
    labels: dict[str, int] = {}
    """Reflections and tries, by label; without those of forgotten episodes."""
    forgotten: tuple[str, ...] = ()
    """Episodes that were forgotten after the version was trained on them: its weights were not changed."""
    rows_forgotten: int = 0
    """Number of rows of them, which `labels` does not count."""


class Lineage(Record):
    """Lineage of a version."""

    version: str
    versions: tuple[Trained, ...]
    """The version and its ancestors, newest first."""
    episodes: int
    """Number of episodes that one of them was trained on."""
    forgotten: tuple[str, ...]
    by: dict[str, int] = {}
    """Number of these episodes by a value of their metadata, such as the user."""


@checked
def lineage(run: str | Path, version: str, *, by: str | None = None) -> Lineage:
    """List the episodes that a version was trained on, or an ancestor of it.

    Args:
        by: key of the metadata, by whose values the episodes that are still stored are counted.

    Raises:
        ConfigError: there is no such run or version, or no stored episode has the key.
        RecordError, SchemaVersionError: a card, a receipt or the store cannot be read.
    """
    registry, run = Registry(run), Path(run)
    if not registry.policies_dir.is_dir():
        store_of_run(run)  # raises if it is no run
    registry.card(version)  # raises if there is none
    gone = [*receipts(run)]
    files = [file for receipt in gone for file in receipt.files]
    versions: list[Trained] = []
    for card in ancestry(registry.policies_dir, version):
        path = registry.version_dir(card.version) / ROWS_FILE
        rows = [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else None
        forgotten = {id_ for receipt in gone for id_ in receipt.trained.get(card.version, ())}
        versions.append(
            Trained(
                version=card.version,
                parent=card.parent,
                kind=card.kind,
                created_at=card.created_at,
                episodes=None if rows is None else tuple(sorted({row[0] for row in rows} | forgotten)),
                labels=dict(Counter(row[2] for row in rows or ())),
                forgotten=tuple(sorted(forgotten)),
                rows_forgotten=sum(file.lines for file in files if Path(file.path).parts[-3:] == path.parts[-3:]),
            )
        )
    episodes = {id_ for trained in versions for id_ in trained.episodes or ()}
    return Lineage(
        version=version,
        versions=tuple(versions),
        episodes=len(episodes),
        forgotten=tuple(sorted({id_ for trained in versions for id_ in trained.forgotten})),
        by=_count_by(run, episodes, by) if by is not None else {},
    )


def _count_by(run: Path, episodes: set[str], key: str) -> dict[str, int]:
    """Count episodes by a value of their metadata; one that is stored several times counts once."""
    stored = {t.trajectory_id: t.metadata for t in read(run) if t.trajectory_id in episodes}
    keys = sorted({name for metadata in stored.values() for name in metadata})
    if stored and key not in keys:
        shown = shown_keys(keys)
        known = f"known are {', '.join(shown)}" if shown else "they have none"
        raise ConfigError(f"by: none of these episodes of {run} has the key {key!r}; {nearest(key, keys)}{known}")
    values = [stored.get(id_, {}).get(key) for id_ in episodes]
    return dict(Counter("unknown" if value is None else str(value) for value in values).most_common())
