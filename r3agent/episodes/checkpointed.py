"""Checkpointed model calls: the checkpointer saves each response as soon as it arrives.

LangGraph saves the update of a node when the node returns. If a node has several concurrent requests, each one is also
a LangGraph `task`, whose result is saved on its own, so a resumed run sends only the missing requests. As a side
effect, `stream_mode="updates"` yields a chunk `{"sample": {"drawn": [...]}}` for each response, besides those of the
nodes. Without a thread to resume, no tasks are made. Under `graph.invoke` each task waits in one of LangGraph's
`min(32, cores + 4)` threads.

LangGraph saves in the background. With `durability="sync"` it waits for the save between steps: when a step begins, all
earlier steps are saved.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Future
from typing import Any, TypeAlias

from langgraph.config import get_config
from langgraph.errors import GraphInterrupt
from langgraph.func import task

from r3agent._util.aio import gather_all, is_run_sync
from r3agent.episodes.state import Json
from r3agent.records.trajectory import Span

LEAST_CONCURRENCY = 3
"""Minimum `max_concurrency` of LangGraph: node, stream and task run concurrently and would deadlock with less."""

Drawing: TypeAlias = Callable[[], Coroutine[Any, Any, list[Span]]]
"""One request that has not been sent yet."""


async def draw(drawings: Iterable[Drawing]) -> list[list[Span]]:
    """Send all requests concurrently, except those that were answered in an earlier run of this step.

    Their order must be the same each time, because LangGraph identifies tasks by their order.
    """
    drawings = list(drawings)
    config = get_config()
    is_kept = (
        len(drawings) > 1
        and "thread_id" in config.get("configurable", {})
        and (config.get("max_concurrency") or LEAST_CONCURRENCY) >= LEAST_CONCURRENCY
    )
    drawn = await gather_all(_caught(_kept(drawing) if is_kept else drawing()) for drawing in drawings)
    interrupts = [interrupt for one in drawn if isinstance(one, GraphInterrupt) for interrupt in one.args[0]]
    if interrupts:
        raise GraphInterrupt(interrupts)
    return [one for one in drawn if not isinstance(one, GraphInterrupt)]


async def _caught(drawing: Awaitable[list[Span]]) -> list[Span] | GraphInterrupt:
    """Return an interrupt, which ends the step only when all others have ended or are interrupted too."""
    try:
        return await drawing
    except GraphInterrupt as interrupt:
        return interrupt


async def _kept(drawing: Drawing) -> list[Span]:
    async def sample() -> dict[str, list[Json]]:
        return {"drawn": [span.model_dump(mode="json") for span in await drawing()]}

    kept = await (_from_thread(sample) if is_run_sync() else task(sample)())
    return [Span.model_validate(span) for span in kept["drawn"]]


async def _from_thread(sample: Callable[[], Coroutine[Any, Any, dict[str, list[Json]]]]) -> dict[str, list[Json]]:
    """Run a task under `graph.invoke`, where tasks are sync: LangGraph's thread waits for this event loop."""
    loop, running, is_cancelled = asyncio.get_running_loop(), list[Future[dict[str, list[Json]]]](), False

    @task(name="sample")
    def wait() -> dict[str, list[Json]]:
        running.append(asyncio.run_coroutine_threadsafe(sample(), loop))
        if is_cancelled:
            running[0].cancel()
        return running[0].result()

    try:
        return await asyncio.wrap_future(wait())
    except asyncio.CancelledError:
        is_cancelled = True
        for future in running:
            future.cancel()
        raise
