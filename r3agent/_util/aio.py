"""Additions to asyncio: awaiting many coroutines without orphans, and calling async code from sync code."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import suppress
from contextvars import copy_context
from functools import cache
from typing import Any, TypeVar, cast

logger = logging.getLogger(__name__)

T = TypeVar("T")

GRACE_S = 5.0
"""Seconds that cancelled code of an application has to clean up, before it is left behind."""

RAISED = (Exception, SystemExit, asyncio.CancelledError)
"""Exceptions by which the code of an application may fail; see `is_own_cancellation`."""


def is_own_cancellation(error: BaseException) -> bool:
    """Return True if the running task is cancelled, and False if something that it waited for was."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling() > 0)


async def gather_all(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines concurrently; if one fails or the caller is cancelled, cancel the rest."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


class TimeLimitError(TimeoutError):
    """The time limit of `run_within` has passed."""


async def run_within(limit_s: float | None, coroutine: Awaitable[T]) -> T:
    """Await code of an application for a time at most; if it does not end when it is cancelled, it is left behind.

    It runs in a task of its own: `asyncio.timeout` waits for ever for code that catches its cancellation.

    Raises:
        TimeLimitError: the time has passed.
    """

    async def settle() -> tuple[T | None, BaseException | None]:
        try:
            return await coroutine, None
        except RAISED as error:  # a `SystemExit` that leaves a task ends the event loop
            return None, error

    task = asyncio.create_task(settle())
    try:
        await asyncio.wait([task], timeout=limit_s)
    except asyncio.CancelledError:
        await _cancel(task)
        raise
    if not task.done():
        await _cancel(task)
        raise TimeLimitError
    result, error = task.result()
    if error is not None:
        raise error
    return cast(T, result)


async def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task], timeout=GRACE_S)
    if not task.done():
        logger.warning("cancelled code still runs after %g s and is left behind: %r", GRACE_S, task.get_coro())
        asyncio._unregister_task(task)  # or else the end of `asyncio.run` waits for it


async def in_own_thread(function: Callable[[], T]) -> T:
    """Call a function that may take long, in the caller's context and a thread of its own.

    `asyncio.to_thread` has few threads, which such functions would keep from others. If the caller is cancelled, the
    thread goes on by itself, and the interpreter's exit does not wait for it.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[tuple[T | None, BaseException | None]] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if not done.done():
            done.set_result((result, error))

    def run() -> None:
        result, error = None, None
        try:
            result = context.run(function)
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result, error)

    context = copy_context()
    threading.Thread(target=run, name="r3agent-agent", daemon=True).start()
    result, error = await done
    if error is not None:
        raise error
    return cast(T, result)


def run_in_thread_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run `coroutine` as `asyncio.run` does, in a loop that stays open for the next one of this thread.

    Connections belong to a loop, and the clients that keep them, such as LangChain's, outlive a collection.
    """
    return _runner(threading.get_ident()).run(coroutine, context=copy_context())


@cache
def _runner(thread: int) -> asyncio.Runner:
    return asyncio.Runner()


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Wait for `coroutine` from sync code, in any thread; an interrupted wait cancels it.

    One loop for the whole process keeps connections alive between calls, and works inside a running loop (notebooks),
    where `asyncio.run` does not.

    Raises:
        RuntimeError: the caller runs under `run_sync` itself, so it would wait for itself.
    """
    loop = _loop()
    if is_run_sync():
        coroutine.close()
        raise RuntimeError("sync code inside an async node or verifier waits for itself; await it instead")
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def is_run_sync() -> bool:
    """Return True if `run_sync` runs the caller."""
    try:
        return asyncio.get_running_loop() is _loop()
    except RuntimeError:
        return False


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="r3agent-sync", daemon=True).start()
    return loop


for cached in (_loop, _runner):
    os.register_at_fork(after_in_child=cached.cache_clear)  # a forked child has the loops but not their threads
