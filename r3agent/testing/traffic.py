"""Steady traffic during a change of the server, to measure failures and gaps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Generic, NamedTuple, TypeVar

from r3agent._util.aio import gather_all

T = TypeVar("T")


class Traffic(NamedTuple, Generic[T]):
    """Answers before, during and after the change, in order."""

    answers: list[T]
    gap_s: float
    """Longest time without an answer."""
    usual_gap_s: float
    """Longest time without an answer before the change."""


async def traffic_through(
    change: Callable[[], object],
    ask: Callable[[int], Awaitable[T]],
    *,
    clients: int = 16,
    pause_s: float = 0.0,
    before_s: float = 2.0,
    more: int = 3,
) -> Traffic[T]:
    """Keep `clients` requests running while `change` runs in a thread.

    Args:
        ask: sends one request, given its number; an exception ends the traffic.
        pause_s: pause of each client between two requests.
        before_s: duration of the traffic before the change.
        more: number of requests of each client after the change.
    """
    ended: list[float] = []
    answers: list[T] = []
    changed, changes_at = asyncio.Event(), float("inf")

    async def client() -> None:
        left = more
        while left:
            answers.append(await ask(len(answers)))
            ended.append(time.monotonic())
            left -= changed.is_set()
            await asyncio.sleep(pause_s)

    async def changing() -> None:
        nonlocal changes_at
        await asyncio.sleep(before_s)
        changes_at = time.monotonic()
        await asyncio.to_thread(change)
        changed.set()

    await gather_all([changing(), *(client() for _ in range(clients))])
    gaps = [(end, end - begin) for begin, end in pairwise(ended)]
    return Traffic(
        answers,
        gap_s=max(gap for _, gap in gaps),
        usual_gap_s=max((gap for end, gap in gaps if end < changes_at), default=float("nan")),
    )
