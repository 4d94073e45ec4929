"""Guard against leakage between train, gate and test splits: no task of a run may be in two of them.

The built-in sources separate the splits by a hash of the id. A user's own source may not, so every draw is checked
against all earlier draws of the run, in this process or an earlier one. What an application recorded was drawn from no
split; training leaves out recorded tasks that are held out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

import orjson

from r3agent.errors import ConfigError
from r3agent.records.trajectory import HELD_OUT, SPLIT, Message, Task, Trajectory
from r3agent.store.shards import shards
from r3agent.tasks.splits import APART, Split, split_of


class SplitGuard:
    """Check that no task of a run is drawn from two splits, and find the split of recorded tasks.

    Args:
        run: directory of the run, whose stores say which tasks it has drawn.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._drawn: dict[str, str] | None = None

    def check(self, tasks: Sequence[Task], split: str) -> None:
        """Check tasks that were drawn from a split; draws from `all` may mix splits and are not checked.

        Raises:
            ConfigError: a task was drawn from another split before.
        """
        if split not in APART:
            return
        drawn = self._read()
        for task in tasks:
            if (before := drawn.setdefault(task.id, split)) != split:
                raise ConfigError(
                    f"task {task.id!r} was drawn from split {split!r}, and by this run from {before!r} before: train, "
                    "gate and test must share no task; make the source keep them apart, and use another --run"
                )
            _note_prompt(drawn, task.messages, split)

    def with_splits(self, trajectories: Iterable[Trajectory]) -> list[Trajectory]:
        """Fill in the split of trajectories that say none, such as those of an application.

        It is the split from which the run drew a task of the same id or the same prompt, the one that is held out if
        there are two, or else that of the id.
        """
        return [t if says_split(t) else self._with_split(t) for t in trajectories]

    def _with_split(self, trajectory: Trajectory) -> Trajectory:
        task, drawn = trajectory.task, self._read()
        known = [drawn[key] for key in (task.id, _prompt_key(task.messages)) if key in drawn]
        split = min(known, key=lambda split: split not in HELD_OUT, default=split_of(task.id))
        return trajectory.changed(metadata={**trajectory.metadata, SPLIT: split})

    def _read(self) -> dict[str, str]:
        """Return the splits of the tasks that the run has drawn, by id and by prompt; read late: it takes a while."""
        if self._drawn is None:
            self._drawn = {}
            for store in ("trajectories", "eval/v*", "gate/v*/v*"):
                for directory in self._run.glob(f"{store}/"):
                    for task, split in _stored(directory):
                        self._drawn[task["id"]] = split
                        _note_prompt(self._drawn, task["messages"], split)
        return self._drawn


def says_split(trajectory: Trajectory) -> bool:
    """Return True if the record says which split its task was drawn from."""
    return trajectory.metadata.get(SPLIT) in get_args(Split)


def _note_prompt(drawn: dict[str, str], messages: Sequence[Message], split: str) -> None:
    """Note the split of a prompt; if tasks of several splits have it, it is held out."""
    if drawn.get(key := _prompt_key(messages)) not in HELD_OUT:
        drawn[key] = split


def _prompt_key(messages: Sequence[Message]) -> str:
    return sha256(orjson.dumps(messages, option=orjson.OPT_SORT_KEYS, default=str)).hexdigest()


def _stored(directory: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield task and split of the trajectories of a store, without validating its records."""
    for shard in shards(directory):
        for line in shard.read_bytes().splitlines():
            try:
                record = orjson.loads(line)
                task, split = record["task"], record["metadata"].get(SPLIT)
                if split in APART and {"id", "messages"} <= task.keys():
                    yield task, split
            except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
                continue  # a torn line, or not a trajectory: `store.read` reports it
