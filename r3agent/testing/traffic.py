"""Steady traffic through a change of the server, which shows failures and gaps."""

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
    """Longest time without any answer."""
    usual_gap_s: float
    """Longest time without any answer before the change began."""


async def traffic_through(
    change: Callable[[], object],
    ask: Callable[[int], Awaitable[T]],
    *,
    clients: int = 16,
    pause_s: float = 0.0,
    before_s: float = 2.0,
    more: int = 3,
) -> Traffic[T]:
    """Keep `clients` requests under way while `change` runs in a thread.

    Args:
        ask: one request, told its number; it raises what fails, which ends everything.
        pause_s: of each client between two requests.
        before_s: how long there is traffic before the change begins.
        more: requests of each client after it.
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
