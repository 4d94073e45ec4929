"""Checkpointed model calls: the checkpointer saves each response as soon as it arrives.

LangGraph saves the update of a node when the node returns. If a node has several concurrent requests, each one is also
a LangGraph `task`, whose result is saved on its own, so a resumed run sends only the missing requests. So is each step
of the tool loop, and each call of its tools, unless there is a world of the try, which is made anew. Under
`graph.invoke`, and with a `max_concurrency`, tries that run at once are tasks, and their steps are not. As a side
effect, `stream_mode="updates"` yields a chunk `{"sample": {"drawn": [...]}}` for each response, and `{"tool": {...}}`
for each call of a tool, besides those of the nodes. Without a thread to resume, no tasks are made. Under `graph.invoke`
each task waits in one of LangGraph's `min(32, cores + 4)` threads.

LangGraph saves in the background. With `durability="sync"` it waits for the save between steps: when a step begins, all
earlier steps are saved.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeAlias, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.config import get_config
from langgraph.errors import GraphInterrupt
from langgraph.func import task

from r3agent._util.aio import gather_all, is_run_sync
from r3agent.episodes.state import Json
from r3agent.records.trajectory import Span

T = TypeVar("T")

LEAST_CONCURRENCY = 3
"""Minimum `max_concurrency` of LangGraph: node, stream and task run concurrently and would deadlock with less."""

Drawing: TypeAlias = Callable[[], Coroutine[Any, Any, list[Span]]]
"""One request that has not been sent yet."""


_is_kept: ContextVar[bool] = ContextVar("r3agent_is_kept", default=False)
"""True within a task."""


async def draw(drawings: Iterable[Drawing]) -> list[list[Span]]:
    """Send all requests concurrently, except those that were answered in an earlier run of this step.

    Their order must be the same each time, because LangGraph identifies tasks by their order.
    """
    drawings = list(drawings)
    if len(drawings) == 1:
        return [await drawings[0]()]
    return await gather_interruptible(partial(keep_spans, drawing) for drawing in drawings)


async def gather_interruptible(works: Iterable[Callable[[], Coroutine[Any, Any, T]]]) -> list[T]:
    """Run works concurrently as `gather_all` does; interrupts are raised together when all others have ended."""
    drawn = await gather_all(_caught(work) for work in works)
    interrupts = [interrupt for one in drawn if isinstance(one, GraphInterrupt) for interrupt in one.args[0]]
    if interrupts:
        raise GraphInterrupt(interrupts)
    return [one for one in drawn if not isinstance(one, GraphInterrupt)]


async def _caught(work: Callable[[], Coroutine[Any, Any, T]]) -> T | GraphInterrupt:
    try:
        return await work()
    except GraphInterrupt as interrupt:
        return interrupt


async def keep_spans(drawing: Drawing) -> list[Span]:
    """Return the spans of a drawing, or those that it had in an earlier run of this step."""

    async def sample() -> Json:
        return {"drawn": [span.model_dump(mode="json") for span in await drawing()]}

    if not _can_keep():
        return await drawing()
    return [Span.model_validate(span) for span in (await keep(sample))["drawn"]]


async def keep(work: Callable[[], Coroutine[Any, Any, Json]]) -> Json:
    """Return the result of `work`, or that of an earlier run of this step if there is a thread to resume.

    The name of `work` is that of its chunk in `stream_mode="updates"`.
    """
    if not _can_keep():
        return await work()

    async def run() -> Json:
        _is_kept.set(True)
        return await work()

    run.__name__ = work.__name__
    return await (_from_thread(run) if is_run_sync() else task(run)())


def _can_keep() -> bool:
    """Return True if there is a thread to resume, and LangGraph runs a task while others wait for it."""
    config = running_config()
    if "thread_id" not in config.get("configurable", {}):
        return False
    if _is_kept.get():  # with few threads or a limit, the outer tasks would wait for this one
        return not is_run_sync() and config.get("max_concurrency") is None
    return (config.get("max_concurrency") or LEAST_CONCURRENCY) >= LEAST_CONCURRENCY


def running_config() -> RunnableConfig:
    """Return the config of the graph that runs this code, empty if there is none."""
    try:
        return get_config()
    except RuntimeError:
        return {}


async def _from_thread(work: Callable[[], Coroutine[Any, Any, Json]]) -> Json:
    """Run a task under `graph.invoke`, where tasks are sync: LangGraph's thread waits for this event loop."""
    loop, running, is_cancelled = asyncio.get_running_loop(), list[Future[Json]](), False

    @task(name=work.__name__)
    def wait() -> Json:
        running.append(asyncio.run_coroutine_threadsafe(work(), loop))
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
