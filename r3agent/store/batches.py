"""Trajectories of a store in batches of whole tasks, so that few are in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from r3agent.records.trajectory import Trajectory, each_trajectory
from r3agent.store.entry import Entry
from r3agent.store.index import Place, entries, read_places
from r3agent.store.labels import Labels
from r3agent.store.reading import Unreadable
from r3agent.store.shards import latest, shards

BATCH = 500
"""Number of records of a batch; one of a task with more has them all."""


class StoredTrajectories(Iterable[Trajectory]):
    """The trajectories that `load` returns, read when they are needed, and again each time.

    Args:
        directory: the store, or the run directory that contains it.
        change: applied to each batch, e.g. to check it.
        size: number of records of a batch.
        unreadable: receives lines that are no record, instead of the log.

    Raises:
        ConfigError: there is no such directory.
    """

    def __init__(
        self,
        directory: str | Path,
        change: Callable[[list[Trajectory]], list[Trajectory]] = lambda batch: batch,
        *,
        size: int = BATCH,
        unreadable: list[Unreadable] | None = None,
    ) -> None:
        shards(directory)  # raises if there is none
        self._directory, self._change, self._size, self._unreadable = directory, change, size, unreadable

    def watched(self, see: Callable[[list[Trajectory]], None]) -> StoredTrajectories:
        """Return the same trajectories, each batch of which is passed to `see` when it is read."""

        def change(batch: list[Trajectory]) -> list[Trajectory]:
            changed = self._change(batch)
            see(changed)
            return changed

        return StoredTrajectories(self._directory, change, size=self._size, unreadable=self._unreadable)

    def __iter__(self) -> Iterator[Trajectory]:
        for batch in self.batches():
            yield from batch

    def batches(self) -> Iterator[list[Trajectory]]:
        """Read all trajectories of some tasks at a time, in order of the tasks' first records.

        Raises:
            ConfigError, RecordError, SchemaVersionError: as `load`.
        """
        tasks: dict[str, list[Place]] = {}
        for number, entry in enumerate(entries(self._directory, unreadable=self._unreadable)):
            tasks.setdefault(entry.task_id, []).append(_place(number, entry))
        labels, batch = Labels(self._directory), list[Place]()
        for places in tasks.values():
            if batch and len(batch) + len(places) > self._size:
                yield self._read(batch, labels)
                batch = []
            batch += places
        if batch:
            yield self._read(batch, labels)

    def of_task(self, task_id: str) -> list[Trajectory]:
        """Read all trajectories of one task, as a batch.

        Raises:
            ConfigError, RecordError, SchemaVersionError: as `load`.
        """
        found = enumerate(entries(self._directory, unreadable=self._unreadable))
        places = [_place(number, entry) for number, entry in found if entry.task_id == task_id]
        return self._read(places, Labels(self._directory))

    def _read(self, places: list[Place], labels: Labels) -> list[Trajectory]:
        return self._change(labels.over(latest(read_places(places))))


def batches_of(trajectories: Iterable[Trajectory]) -> Iterator[list[Trajectory]]:
    """Yield all trajectories of some tasks at a time if they are those of a store, or else all at once."""
    if isinstance(trajectories, StoredTrajectories):
        yield from trajectories.batches()
    else:
        yield list(each_trajectory(trajectories))


def kept(trajectories: Iterable[Trajectory]) -> Iterable[Trajectory]:
    """Return the trajectories so that they can be read several times: those of a store, or else a list."""
    return trajectories if isinstance(trajectories, StoredTrajectories) else list(each_trajectory(trajectories))


def _place(number: int, entry: Entry) -> Place:
    return Place(number, entry.path, entry.offset, entry.size, entry.crc)
