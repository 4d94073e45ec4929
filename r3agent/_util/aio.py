"""Additions to asyncio: coroutines without orphans, threads of one's own, and async code in sync code."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from contextvars import copy_context
from functools import cache
from queue import Empty, SimpleQueue
from typing import Any, ClassVar, TypeVar, cast

from r3agent._util.within import OverrunError

T = TypeVar("T")

N_TURNS = min(32, (os.cpu_count() or 1) + 4)
"""Number of calls that `in_turn` runs at once in one event loop, as many as `asyncio.to_thread` does."""


async def gather_all(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines concurrently; if one fails or the caller is cancelled, cancel the rest."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.sleep(0)  # a task that is cancelled before it begins never awaits the coroutines it was given
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def in_turn(function: Callable[[], T], limit_s: float | None = None) -> T:
    """Call a function in a thread when it is its turn: not too many run at once.

    As `asyncio.to_thread`, threads are used again; but a function that hangs keeps its turn only until its limit, and
    the interpreter's exit does not wait for it.

    Raises:
        OverrunError: it took longer than `limit_s`.
    """
    loop = asyncio.get_running_loop()
    if _turns.__dict__.get("loop") is not loop:
        _turns.loop, _turns.semaphore = loop, asyncio.Semaphore(N_TURNS)
    async with _turns.semaphore:
        limit = asyncio.timeout(limit_s)
        try:
            async with limit:
                return await _in_thread(_Worker.run, function)
        except TimeoutError:
            if limit.expired():
                raise OverrunError(f"it took longer than {limit_s:g} s") from None
            raise


_turns = threading.local()
"""Semaphore of the event loop that runs in a thread."""


async def in_own_thread(function: Callable[[], T]) -> T:
    """Call a function that may take long, in the caller's context and a thread of its own.

    `asyncio.to_thread` has few threads, which such functions would keep from others. If the caller is cancelled, the
    thread goes on by itself, and the interpreter's exit does not wait for it.
    """
    return await _in_thread(_start, function)


async def _in_thread(start: Callable[[Callable[[], None]], object], function: Callable[[], T]) -> T:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[tuple[T | None, BaseException | None]] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if not done.done():
            done.set_result((result, error))

    def run() -> None:
        result, error = None, None
        try:
            result = context.run(function)
        except KeyboardInterrupt as raised:
            error = RuntimeError("KeyboardInterrupt in a thread, where Ctrl-C raises none")
            error.__cause__ = raised
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result, error)

    context = copy_context()
    start(run)
    result, error = await done
    if error is not None:
        raise error
    return cast(T, result)


def _start(function: Callable[[], None]) -> None:
    threading.Thread(target=function, name="r3agent-agent", daemon=True).start()


class _Worker:
    """Thread that runs one function after another, because starting one holds up the event loop."""

    idle: ClassVar[list[_Worker]] = []
    IDLE_S = 10.0
    """Time after which an idle one ends."""

    def __init__(self) -> None:
        self._functions: SimpleQueue[Callable[[], None]] = SimpleQueue()
        _start(self._work)

    @classmethod
    def run(cls, function: Callable[[], None]) -> None:
        """Run a function in an idle worker, or else in another."""
        try:
            worker = cls.idle.pop()
        except IndexError:
            worker = cls()
        worker._functions.put(function)

    def _work(self) -> None:
        while True:
            try:
                self._functions.get(timeout=self.IDLE_S)()
            except Empty:
                try:
                    self.idle.remove(self)
                except ValueError:  # it was taken at this moment
                    continue
                return
            self.idle.append(self)


def run_in_thread_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run `coroutine` as `asyncio.run` does, in a loop that stays open for the next one of this thread.

    Connections belong to a loop, and the clients that keep them, such as LangChain's, outlive a collection. An
    interrupt ends all tasks of the loop, as at the end of `asyncio.run`: whatever runs it again finds none of them.
    """
    runner = _runner(threading.get_ident())
    try:
        return runner.run(coroutine, context=copy_context())
    except (KeyboardInterrupt, SystemExit) as interrupt:
        _end_tasks(runner.get_loop(), interrupt)
        raise


def _end_tasks(loop: asyncio.AbstractEventLoop, interrupt: BaseException) -> None:
    """Cancel the tasks of a loop, and run it until they have ended.

    An interrupt that landed in a task is its exception: the tasks that await it raise it out of the loop once more.
    """
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    ended = loop.create_task(_others_ended())
    while not ended.done():
        try:
            loop.run_until_complete(ended)
        except (KeyboardInterrupt, SystemExit) as raised:
            if raised is not interrupt:  # Ctrl-C again
                raise
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()  # or else asyncio logs that nobody retrieved it


async def _others_ended() -> None:
    current = asyncio.current_task()
    while others := asyncio.all_tasks() - {current}:  # without those that `leave_behind` gave up meanwhile
        await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)


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


for forget in (_loop.cache_clear, _runner.cache_clear, _Worker.idle.clear):
    os.register_at_fork(after_in_child=forget)  # a forked child has the loops and workers, but not their threads
