"""Turns of a measurement of episodes: 64 at a time, with their calls, seconds and CPU time."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from itertools import repeat
from typing import NamedTuple

CONCURRENCY = 64


class Turn(NamedTuple):
    """Calls of one turn."""

    calls: int
    seconds: float
    cpu_s: float

    @property
    def rate(self) -> float:
        return self.calls / self.seconds


async def turn(episode: Callable[[], Awaitable[int]], seconds: float = math.inf, number: int | None = None) -> Turn:
    """Run episodes for a time, or a number of them, and count their calls."""
    calls, start, cpu = 0, time.perf_counter(), time.process_time()
    left = repeat(None) if number is None else repeat(None, number)

    async def worker() -> None:
        nonlocal calls
        for _ in left:
            if time.perf_counter() - start >= seconds:
                return
            made = await episode()
            calls += made

    await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))
    return Turn(calls, time.perf_counter() - start, time.process_time() - cpu)
