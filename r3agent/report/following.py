"""Reading of a store that grows: after the first time, only what is new, and what else is stored of its tasks.

Shards and labels are appended to. A file that was written anew, e.g. by `r3agent data forget`, is another one: then all
is read again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import orjson

from r3agent.records.trajectory import Trajectory
from r3agent.store import parquet
from r3agent.store.batches import BATCH
from r3agent.store.index import Place, entries, line_number, read_places
from r3agent.store.labels import Labels, label_files
from r3agent.store.reading import Unreadable, parse, readable
from r3agent.store.shards import latest, shards


class RewrittenError(Exception):
    """A file was changed otherwise than by an addition: what was read of it no longer holds."""


class _End(NamedTuple):
    """Place up to which a file was read."""

    inode: int
    size: int = 0


class GrowingStore:
    """Tasks of a store, each with the places of its records.

    Args:
        directory: the store.

    Raises:
        ConfigError, SchemaVersionError: as `read`.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ends = {path: _End(path.stat().st_ino) for path in shards(directory)}
        self._label_ends = dict[Path, _End]()
        self._tasks: dict[str, list[Place]] = {}
        self._task_of: dict[str, str] = {}
        self._n = 0
        for entry in entries(directory):
            path, place = entry.path, Place(self._n, entry.path, entry.offset, entry.size, entry.crc)
            self._add(entry.task_id, entry.trajectory_id, place)
            end = self._ends.get(path) or _End(path.stat().st_ino)
            self._ends[path] = end._replace(size=entry.offset + entry.size)
        self._fresh_labels()
        self._labels = Labels(directory)

    @property
    def n_records(self) -> int:
        """Number of records."""
        return self._n

    @property
    def tasks(self) -> Iterable[str]:
        """Ids of the tasks, in order of their first records."""
        return self._tasks.keys()

    def tasks_of(self, trajectory_ids: Iterable[str]) -> set[str]:
        """Return the tasks of those trajectories that are stored here."""
        return {self._task_of[id_] for id_ in trajectory_ids if id_ in self._task_of}

    def grow(self) -> set[str]:
        """Read what was added since the last call; return the tasks with new records or labels.

        Raises:
            RewrittenError: something was not added, but changed.
            SchemaVersionError: another version of r3agent wrote it.
        """
        tasks = {record.task.id for record in readable(self._fresh_records())}
        labelled = self._fresh_labels()
        if labelled:
            self._labels = Labels(self._directory)
        return tasks | self.tasks_of(labelled)

    def batches(self, tasks: Iterable[str]) -> Iterator[dict[str, list[Trajectory]]]:
        """Read all trajectories of these tasks, by task, as many tasks at a time as in `StoredTrajectories.batches`.

        Raises:
            RecordError, SchemaVersionError: as `load`.
        """
        batch, chosen = list[Place](), set(tasks)
        for task, places in self._tasks.items():
            if task not in chosen:
                continue
            if batch and len(batch) + len(places) > BATCH:
                yield self._read(batch)
                batch = []
            batch += places
        if batch:
            yield self._read(batch)

    def _read(self, places: list[Place]) -> dict[str, list[Trajectory]]:
        found: dict[str, list[Trajectory]] = {}
        for trajectory in self._labels.over(latest(read_places(places))):
            found.setdefault(trajectory.task.id, []).append(trajectory)
        return found

    def _add(self, task: str, trajectory: str, place: Place) -> None:
        self._tasks.setdefault(task, []).append(place)
        self._task_of[trajectory] = task
        self._n += 1

    def _fresh_records(self) -> Iterator[Trajectory | Unreadable]:
        paths = shards(self._directory)
        _refuse_missing(self._ends, paths)
        for path in paths:
            if path.suffix == parquet.ENDING:  # it is written at once
                if path not in self._ends or path.stat().st_ino != self._ends[path].inode:
                    raise RewrittenError(f"{path} is new")
                continue
            for start, line in _fresh_lines(path, self._ends):
                found = parse(line, Trajectory, path, 0)
                if isinstance(found, Unreadable):
                    found = found._replace(line=line_number(path, start))
                else:
                    crc = crc32(line.rstrip())
                    self._add(found.task.id, found.trajectory_id, Place(self._n, path, start, len(line), crc))
                yield found

    def _fresh_labels(self) -> set[str]:
        """Return the trajectories of new labels."""
        paths = [*label_files(self._directory)]
        _refuse_missing(self._label_ends, paths)
        return {_trajectory_of(line) for path in paths for _, line in _fresh_lines(path, self._label_ends)}


def _refuse_missing(ends: Mapping[Path, _End], paths: Iterable[Path]) -> None:
    if missing := ends.keys() - {*paths}:
        raise RewrittenError(f"{min(missing)} is gone")


def _fresh_lines(path: Path, ends: dict[Path, _End]) -> Iterator[tuple[int, bytes]]:
    """Yield the whole lines that were added to a file, with their places, and move its end behind them."""
    stat = path.stat()
    inode, start = ends.setdefault(path, _End(stat.st_ino))
    if inode != stat.st_ino or stat.st_size < start:
        raise RewrittenError(f"{path} was written anew")
    if stat.st_size == start:
        return
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return
            ends[path] = _End(inode, start + len(line))
            if not line.isspace():
                yield start, line
            start += len(line)


def _trajectory_of(line: bytes) -> str:
    try:
        values: Any = orjson.loads(line)
        return str(values["trajectory_id"])
    except (ValueError, KeyError, TypeError):
        return ""
