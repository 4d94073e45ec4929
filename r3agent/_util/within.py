"""Limits of an application's code, which may hang, swallow its cancellation, or exit."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any, TypeVar, cast

T = TypeVar("T")

logger = logging.getLogger(__name__)

GRACE_S = 2.0
"""Time for application code to end after it was cancelled."""


class OverrunError(TimeoutError):
    """Application code took longer than its limit, which `within` was given."""


def is_failure(error: BaseException) -> bool:
    """Return True if an exception says that the code of an application failed.

    It may be any, also `SystemExit` or the cancellation of something that the code waited for; but not Ctrl-C, and not
    the cancellation of the running task.
    """
    if isinstance(error, asyncio.CancelledError):
        try:
            task = asyncio.current_task()
        except RuntimeError:  # a thread, in which no task can be cancelled
            return True
        return task is not None and task.cancelling() == 0
    return not isinstance(error, KeyboardInterrupt | GeneratorExit)


async def within(
    limit_s: float | None,
    code: Callable[[], Awaitable[T]],
    *,
    name: str,
    grace_s: float = GRACE_S,
    before_cancelling: Callable[[], object] = lambda: None,
) -> T:
    """Run code of an application for `limit_s` at most, in a task of its own.

    Code that swallows its cancellation is left behind after a grace period, with a warning: neither the caller nor the
    end of the event loop or the interpreter waits for it.

    Args:
        name: name of the code in the warning.

    Raises:
        OverrunError: it took longer.
        BaseException: it raised that; a `SystemExit` does not end the event loop first.
    """
    task = asyncio.create_task(settled(code))
    try:
        await asyncio.wait({task}, timeout=limit_s)
        if not task.done():
            raise OverrunError(f"it took longer than {limit_s:g} s")
    finally:
        if not task.done():
            before_cancelling()
            task.cancel()
            try:
                await asyncio.wait({task}, timeout=grace_s)
            finally:
                leave_behind(task, name)
    result, error = task.result()
    if error is not None:
        raise error
    return cast(T, result)


async def settled(code: Callable[[], Awaitable[T]]) -> tuple[T | None, BaseException | None]:
    """Run code of an application; return its result, and the exception that it raised.

    A task that raises `SystemExit` ends its event loop.
    """
    try:
        return await code(), None
    except GeneratorExit:
        raise
    except BaseException as error:
        return None, error


def leave_behind(task: asyncio.Task[Any], name: str) -> None:
    """Wait no further for a task that swallows its cancellation, unless it has ended.

    `asyncio.run` would cancel it again and wait for ever, and closing its coroutine at exit may loop: so it is not
    registered any more, and a thread that never ends keeps it.
    """
    if task.done():
        return
    logger.warning(
        "%s goes on after it was cancelled, and is left behind: it swallows asyncio.CancelledError; raise that again",
        name,
    )
    asyncio.tasks._unregister_task(task)  # pyright: ignore
    kept = _left_behind()
    kept.append(task)
    task.add_done_callback(kept.remove)


@cache
def _left_behind() -> list[asyncio.Task[Any]]:
    kept: list[asyncio.Task[Any]] = []

    def keep(_: object) -> None:
        threading.Event().wait()

    threading.Thread(target=keep, args=(kept,), name="r3agent-left-behind", daemon=True).start()
    return kept


os.register_at_fork(after_in_child=_left_behind.cache_clear)  # a forked child has the list but not its thread
