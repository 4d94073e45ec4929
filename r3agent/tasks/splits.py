"""Splits of tasks: for training, for the promotion gate, and for the final test.

A hash of the task's id decides its split permanently.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Literal, Protocol, TypeAlias, TypeVar, get_args

from r3agent.errors import ConfigError

Split: TypeAlias = Literal["train", "gate", "test", "all"]

APART = ("train", "gate", "test")
"""Splits that share no task."""

TEST_SHARE, GATE_SHARE = 0.25, 0.1
"""Shares of tasks in the test split and in the gate split."""


def split_of(task_id: str) -> Split:
    """Return `train`, `gate` or `test`."""
    place = zlib.crc32(task_id.encode()) / 2**32
    return "test" if place < TEST_SHARE else "gate" if place < TEST_SHARE + GATE_SHARE else "train"


class Identified(Protocol):
    """Task, or an object that is converted to one."""

    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=Identified)


def draw(tasks: Iterable[T], n: int | None, *, seed: int, split: str) -> list[T]:
    """Return `n` tasks of the split, sampled by seed, or all of them if there are fewer.

    `None` returns every row of the split including duplicates, for inspection.

    Raises:
        ConfigError: as `unique`, unless `n` is `None`.
    """
    in_split = [task for task in tasks if split in ("all", split_of(task.id))]
    if n is None:
        return in_split
    in_split = unique(in_split)
    return in_split if n >= len(in_split) else random.Random(seed).sample(in_split, n)


def distinct(made: Iterator[T | None], n: int | None, *, split: str, max_fruitless: int, source: str) -> Iterator[T]:
    """Yield the first `n` distinct tasks of the split from a generator that repeats itself, or all that it makes.

    Args:
        made: endless tasks, with `None` for an unusable one.
        max_fruitless: number of consecutive items without a new task after which the tasks count as exhausted.
        source: name of the generator, for messages.

    Raises:
        ConfigError: `n` is `None`, or there is no such split.
    """
    if n is None:
        raise ConfigError(f"{source} is generated: say how many tasks with --n")
    if split not in get_args(Split):
        raise ConfigError(f"{split=}: {source} has the splits {', '.join(get_args(Split))}")
    seen: set[str] = set()
    for _ in range(n):
        candidates = islice(made, max_fruitless)
        fresh = (task for task in candidates if task and task.id not in seen and split in ("all", split_of(task.id)))
        task = next(fresh, None)
        if task is None:
            return
        seen.add(task.id)
        yield task


def unique(tasks: Iterable[T]) -> list[T]:
    """Return each task once; identical rows are the same task.

    Raises:
        ConfigError: two different tasks share an id.
    """
    by_id: dict[str, T] = {}
    for task in tasks:
        if by_id.setdefault(task.id, task) != task:
            raise ConfigError(
                f"task id {task.id!r} stands for two tasks that differ; ids must be unique, and without one tasks of "
                "the same prompt share it: drop one or name an id; `r3agent audit` lists all of them"
            )
    return list(by_id.values())
