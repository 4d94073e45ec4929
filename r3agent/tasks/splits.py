"""Which tasks are trained on, which decide on a promotion and which are kept for the final word: a hash of the id
decides, for ever."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable
from typing import Literal, Protocol, TypeAlias, TypeVar

from r3agent.errors import ConfigError

Split: TypeAlias = Literal["train", "gate", "test", "all"]

APART = ("train", "gate", "test")
"""The splits that share no task."""

TEST_SHARE, GATE_SHARE = 0.25, 0.1
"""Shares of tasks that only the test split, only the gate split holds."""


def split_of(task_id: str) -> Split:
    """`train`, `gate` or `test`."""
    place = zlib.crc32(task_id.encode()) / 2**32
    return "test" if place < TEST_SHARE else "gate" if place < TEST_SHARE + GATE_SHARE else "train"


class Identified(Protocol):
    """A task, or what one can be made of."""

    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=Identified)


def draw(tasks: Iterable[T], n: int | None, *, seed: int, split: str) -> list[T]:
    """`n` tasks of the split, others with every seed; all of them where there are no more.

    `None` gives every row of the split, those that repeat another too, for whoever wants to look at them.

    Raises:
        ConfigError: as `unique`, unless `n` is `None`.
    """
    held = [task for task in tasks if split in ("all", split_of(task.id))]
    if n is None:
        return held
    held = unique(held)
    return held if n >= len(held) else random.Random(seed).sample(held, n)


def unique(tasks: Iterable[T]) -> list[T]:
    """Each task once: a row that is the same in all is the same task.

    Raises:
        ConfigError: two tasks that differ share an id.
    """
    by_id: dict[str, T] = {}
    for task in tasks:
        if by_id.setdefault(task.id, task) != task:
            raise ConfigError(
                f"task id {task.id!r} stands for two tasks that differ; ids must be unique, and without one tasks of "
                "the same prompt share it: drop one or name an id; `r3agent audit` lists all of them"
            )
    return list(by_id.values())
