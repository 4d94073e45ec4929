"""Entry of a record in the index of its shard."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import orjson

from r3agent.records.json_values import json_bytes
from r3agent.records.summary import COUNTS, Tally
from r3agent.records.task import prompt_key
from r3agent.records.trajectory import EPISODE, SOURCE, SPLIT, Trajectory
from r3agent.store.lines import crc_of
from r3agent.store.packed import Line

FOLDER = "index"
"""Folder of a store with the files of its index."""


class Entry(NamedTuple):
    """Place of a record, and parts of it."""

    path: Path
    """Shard."""
    offset: int
    """Place of its line, in bytes; in Parquet its row."""
    size: int
    """Bytes of the line, with its end; in Parquet 1, for one row."""
    crc: int
    """CRC-32 of the line without its end."""
    trajectory_id: str
    parent_id: str | None
    task_id: str
    prompt: str
    """`prompt_key` of the task's messages."""
    sample: int
    error: str | None
    """Kind of the error that ended the episode."""
    versions: list[str | None]
    """`Trajectory.policy_versions`."""
    source: str | None
    split: str | None
    episode: str | None
    """Name of the episode at a gateway."""
    counts: dict[str, Any]
    """`Tally.counts` of the trajectory without later labels."""


HEADER = orjson.dumps({"columns": Entry._fields[1:], "counts": sorted(COUNTS)}) + b"\n"
"""First line of an index; one with another header is made anew."""


def index_path(shard: Path) -> Path:
    """Return the path of a shard's index."""
    return shard.parent / FOLDER / f"{shard.name.removesuffix('.jsonl')}.jsonl"


def row_of(trajectory: Trajectory, line: Line, offset: int, size: int, counts: dict[str, Any]) -> bytes:
    """Return the line of an index for a record."""
    named = {key: value for key, value in trajectory.metadata.items() if isinstance(value, str)}
    values = Entry(
        path=Path(),
        offset=offset,
        size=size,
        crc=crc_of(line),
        trajectory_id=trajectory.trajectory_id,
        parent_id=trajectory.parent_id,
        task_id=trajectory.task.id,
        prompt=prompt_key(trajectory.task.messages),
        sample=trajectory.sample,
        error=trajectory.error and trajectory.error.kind,
        versions=[*trajectory.policy_versions],
        source=named.get(SOURCE),
        split=named.get(SPLIT),
        episode=named.get(EPISODE),
        counts=counts,
    )
    return json_bytes(values[1:]) + b"\n"


def counts_of(trajectory: Trajectory) -> dict[str, Any]:
    """Return the `counts` of an entry."""
    tally = Tally()
    tally.add(trajectory)
    return tally.counts()
