"""Trajectories of a store in batches of whole tasks, so that few are in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from r3agent.records.trajectory import Trajectory
from r3agent.store.index import Place, entries, read_place
from r3agent.store.labels import with_labels
from r3agent.store.shards import latest, shards

BATCH = 2000
"""Number of records of a batch; one of a task with more has them all."""


class StoredTrajectories(Iterable[Trajectory]):
    """The trajectories that `load` returns, read when they are needed, and again each time.

    Args:
        directory: the store, or the run directory that contains it.
        change: applied to each batch, e.g. to check it.
        size: number of records of a batch.

    Raises:
        ConfigError: there is no such directory.
    """

    def __init__(
        self,
        directory: str | Path,
        change: Callable[[list[Trajectory]], list[Trajectory]] = lambda batch: batch,
        *,
        size: int = BATCH,
    ) -> None:
        shards(directory)  # raises if there is none
        self._directory, self._change, self._size = directory, change, size

    def watched(self, see: Callable[[list[Trajectory]], None]) -> StoredTrajectories:
        """Return the same trajectories, each batch of which is passed to `see` when it is read."""

        def change(batch: list[Trajectory]) -> list[Trajectory]:
            changed = self._change(batch)
            see(changed)
            return changed

        return StoredTrajectories(self._directory, change, size=self._size)

    def __iter__(self) -> Iterator[Trajectory]:
        for batch in self.batches():
            yield from batch

    def batches(self) -> Iterator[list[Trajectory]]:
        """Read all trajectories of some tasks at a time, in order of the tasks' first records.

        Raises:
            ConfigError, RecordError, SchemaVersionError: as `load`.
        """
        tasks: dict[str, list[Place]] = {}
        for number, entry in enumerate(entries(self._directory)):
            tasks.setdefault(entry.task_id, []).append(Place(number, entry.path, entry.offset, entry.size, entry.crc))
        batch = list[Place]()
        for places in tasks.values():
            if batch and len(batch) + len(places) > self._size:
                yield self._read(batch)
                batch = []
            batch += places
        if batch:
            yield self._read(batch)

    def _read(self, places: list[Place]) -> list[Trajectory]:
        found = latest(map(read_place, sorted(places)))
        return self._change(with_labels(self._directory, found))
