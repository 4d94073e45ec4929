"""Merging of stores into a new one; the sources stay as they are."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, NamedTuple

from r3agent._util.checked import checked
from r3agent._util.files import disk_errors
from r3agent.data.selection import parsed
from r3agent.errors import ConfigError
from r3agent.records.record import Record
from r3agent.records.trajectory import Trajectory
from r3agent.store.labels import label_files
from r3agent.store.lines import decode
from r3agent.store.reading import LABELS, lines_of, records
from r3agent.store.shards import shards, store_at
from r3agent.store.verdicts import SpanVerdict

SHARD_BYTES = 256 << 20
"""Size after which a shard of the new store ends."""


class Merged(Record):
    """Report on a merge."""

    directory: str
    episodes: int
    """Number of different ids in the new store."""
    copies: int
    """Episodes that a source has exactly as an earlier one."""
    conflicts: tuple[str, ...] = ()
    """Ids whose episode is another one in a later source: the earlier source's is in the new store."""
    unreadable: int = 0
    """Lines that are no record, which are left out; `r3agent data check` lists them."""
    labels: int = 0


class _Known(NamedTuple):
    """Episode of an earlier source."""

    source: int
    lines: set[bytes]
    is_whole: bool
    """False if each of its lines has an error."""


@checked
def merge(sources: Sequence[str | Path], out: str | Path) -> Merged:
    """Write the episodes and labels of several stores or run directories into a new store.

    An episode that a source has exactly as an earlier one is written once. One that ended with an error gives way to
    one without; of other episodes with one id, that of the earlier source is written, and the id is reported. Labels
    are written in order of time, layers of verdicts after those of earlier sources.

    Args:
        out: new directory, which appears whole or not at all.

    Raises:
        ConfigError: a source is no store, or `out` exists or cannot be written.
    """
    stores, out = [store_at(source) for source in sources], Path(out)
    if len(stores) < 2:
        raise ConfigError("merge: name at least two stores")
    if len({store.resolve() for store in stores}) < len(stores):
        raise ConfigError("merge: a store is named twice")
    if out.exists():
        raise ConfigError(f"{out} exists; name another directory, or move it away")
    files = [shards(store) for store in stores]
    part = out.with_name(f"{out.name}.part")
    with disk_errors(part):
        shutil.rmtree(part, ignore_errors=True)
        (part / LABELS).mkdir(parents=True)
        known: dict[str, _Known] = {}
        conflicts: dict[int, dict[str, None]] = {}
        copies: set[tuple[int, str]] = set()
        writer, unreadable = _Shards(part), 0
        for number, paths in enumerate(files):
            for path in paths:
                for line in filter(bytes.strip, lines_of(path)):
                    if (record := _read(line)) is None:
                        unreadable += 1
                        continue
                    decision = _admit(known, number, record, line)
                    if decision == "write":
                        writer.write(line)
                    elif decision == "copy":
                        copies.add((number, record.trajectory_id))
                    else:
                        conflicts.setdefault(number, {})[record.trajectory_id] = None
        writer.close()
        n_labels = _merge_labels(stores, part, conflicts)
        part.rename(out)
    return Merged(
        directory=str(out),
        episodes=len(known),
        copies=len(copies),
        conflicts=tuple(dict.fromkeys(id_ for ids in conflicts.values() for id_ in ids)),
        unreadable=unreadable,
        labels=n_labels,
    )


def _read(line: bytes) -> Trajectory | None:
    """Read a line; `None` if it is no record, or not whole."""
    try:
        return decode(line)
    except ValueError:
        return None


def _admit(known: dict[str, _Known], source: int, record: Trajectory, line: bytes) -> str:
    """Decide on a line: `write`, `copy` of an earlier source's, or `conflict` with it."""
    digest, id_ = sha256(line.strip()).digest(), record.trajectory_id
    earlier = known.get(id_)
    is_whole = record.error is None
    if earlier is not None and earlier.source != source:
        if digest in earlier.lines or (earlier.is_whole and not is_whole):
            return "copy"
        if earlier.is_whole:
            return "conflict"
    lines = earlier.lines if earlier is not None else set[bytes]()
    lines.add(digest)
    known[id_] = _Known(source, lines, is_whole or (earlier is not None and earlier.is_whole))
    return "write"


class _Shards:
    """Writer of lines into the shards of a new store."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: BinaryIO | None = None
        self._number = 0

    def write(self, line: bytes) -> None:
        if self._file is None:
            self._file = (self._directory / f"{self._number:05d}.jsonl").open("wb")
            self._number += 1
        self._file.write(line.strip() + b"\n")
        if self._file.tell() > SHARD_BYTES:
            self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None


def _merge_labels(stores: Sequence[Path], part: Path, conflicts: Mapping[int, Collection[str]]) -> int:
    """Write the labels and the layers of verdicts of all stores; return the number of labels.

    Args:
        conflicts: ids, by source, whose episode is not written, so that no label of it is.
    """
    n_labels = 0
    kinds = {path.name: kind for store in stores for path, kind in label_files(store).items()}
    for name, kind in kinds.items():
        lines: list[tuple[str, bytes]] = []
        layers = 0
        for number, store in enumerate(stores):
            path = store / LABELS / name
            left_out = conflicts.get(number, ())
            found = [r for r in records([path], kind) if r.trajectory_id not in left_out] if path.is_file() else []
            for record in found:
                if isinstance(record, SpanVerdict):
                    record = record.model_copy(update={"layer": record.layer + layers})
                data = parsed(line := record.line()) or {}
                lines.append((str(data.get("labelled_at") or ""), line))
            layers = max([layers, *(v.layer + layers for v in found if isinstance(v, SpanVerdict))])
        unique = dict.fromkeys(line for _, line in sorted(lines, key=lambda line: line[0]))
        (part / LABELS / name).write_bytes(b"".join(unique))
        n_labels += len(unique) if name == "labels.jsonl" else 0
    return n_labels
