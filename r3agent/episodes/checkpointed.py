"""Checkpointed model calls: the checkpointer keeps each answer as soon as it is there.

LangGraph saves what a node returns, once it returns. Where a node has several requests under way, each one is made a
LangGraph `task` besides, whose result is saved on its own: a run that is resumed asks only for what is missing. What it
keeps it also shows: `stream_mode="updates"` then has a chunk `{"sample": {"drawn": [...]}}` for each answer, next to
those of the nodes. Without a thread to resume, nothing of this happens. Under `graph.invoke` each waits in a thread of
LangGraph's, which are `min(32, cores + 4)`.

LangGraph saves in the background. With `durability="sync"` it waits for that between steps, so that once a step has
begun, those before it are safe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from typing import Any, TypeAlias

from langgraph.config import get_config
from langgraph.func import task

from r3agent._util.aio import gather_all, is_run_sync
from r3agent.episodes.state import Json
from r3agent.records.trajectory import Span

LEAST_CONCURRENCY = 3
"""Least `max_concurrency` of LangGraph: node, stream and a task run at once; with less they would wait for ever."""

Drawing: TypeAlias = Callable[[], Coroutine[Any, Any, list[Span]]]
"""One request that has not been sent yet."""


async def draw(drawings: Iterable[Drawing]) -> list[list[Span]]:
    """Send all requests at once; one that an earlier run of this step has had answered is not sent again.

    They have to come in the same order each time, for that is how LangGraph knows them.
    """
    drawings = list(drawings)
    config = get_config()
    is_kept = (
        len(drawings) > 1
        and "thread_id" in config.get("configurable", {})
        and (config.get("max_concurrency") or LEAST_CONCURRENCY) >= LEAST_CONCURRENCY
    )
    return await gather_all(_kept(drawing) if is_kept else drawing() for drawing in drawings)


async def _kept(drawing: Drawing) -> list[Span]:
    async def sample() -> dict[str, list[Json]]:
        return {"drawn": [span.model_dump(mode="json") for span in await drawing()]}

    kept = await (_from_thread(sample) if is_run_sync() else task(sample)())
    return [Span.model_validate(span) for span in kept["drawn"]]


async def _from_thread(sample: Callable[[], Coroutine[Any, Any, dict[str, list[Json]]]]) -> dict[str, list[Json]]:
    """Run a task under `graph.invoke`, where it is sync: LangGraph's thread waits for this loop."""
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
