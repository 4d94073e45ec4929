"""Guard against leakage between train, gate and test splits: no task of a run may be in two of them.

The built-in sources separate the splits by a hash of the id. A user's own source may not, so every draw is checked
against all earlier draws of the run, in this process or an earlier one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson

from r3agent.errors import ConfigError
from r3agent.records.trajectory import Task
from r3agent.store.shards import shards
from r3agent.tasks.splits import APART

SPLIT = "split"
"""Metadata key of a trajectory, for the split that its task was drawn from."""


class SplitGuard:
    """Check that no task of a run is drawn from two splits.

    Args:
        stores: directories of trajectories; missing ones are ignored.
    """

    def __init__(self, stores: Sequence[Path]) -> None:
        self._stores = stores
        self._split_of: dict[str, str] | None = None

    def check(self, tasks: Sequence[Task], split: str) -> None:
        """Check tasks that were drawn from a split; draws from `all` may mix splits and are not checked.

        Raises:
            ConfigError: a task was drawn from another split before.
        """
        if split not in APART:
            return
        if self._split_of is None:  # read lazily, because it takes a while
            self._split_of = {task_id: of for store in self._stores for task_id, of in _stored(store)}
        for task in tasks:
            if (before := self._split_of.setdefault(task.id, split)) != split:
                raise ConfigError(
                    f"task {task.id!r} was drawn from split {split!r}, and by this run from {before!r} before: train, "
                    "gate and test must share no task; make the source keep them apart, and use another --run"
                )


def _stored(directory: Path) -> Iterator[tuple[str, str]]:
    """Yield id and split of the tasks of a store, without validating its records."""
    for shard in shards(directory) if directory.is_dir() else ():
        for line in shard.read_bytes().splitlines():
            try:
                record = orjson.loads(line)
                task_id, split = record["task"]["id"], record["metadata"].get(SPLIT)
            except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
                continue  # a torn line, or not a trajectory: `store.read` reports it
            if split in APART:
                yield task_id, split
