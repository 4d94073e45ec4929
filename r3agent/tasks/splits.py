"""Which tasks are trained on, which decide on a promotion and which are kept for the final word: a hash of the id
decides, for ever."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable
from typing import Literal, Protocol, TypeAlias, TypeVar

Split: TypeAlias = Literal["train", "gate", "test", "all"]

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
    """`n` tasks of the split, others with every seed; all of them where there are no more, or `n` is `None`."""
    held = [task for task in tasks if split in ("all", split_of(task.id))]
    return held if n is None or n >= len(held) else random.Random(seed).sample(held, n)
