from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from r3agent._util.aio import gather_all, in_turn, run_in_thread_loop, run_sync
from r3agent._util.within import OverrunError, within
from r3agent.episodes.checkpointed import draw
from r3agent.records.trajectory import Span, Task
from r3agent.verifiers.interface import judge
from tests.support.trees import TASK, span


async def value(x: int) -> int:
    await asyncio.sleep(0)
    return x


async def test_results_are_in_order() -> None:
    assert await gather_all(value(i) for i in range(5)) == [0, 1, 2, 3, 4]
    assert await gather_all([]) == []


@pytest.mark.parametrize("how", ["one fails", "the caller is cancelled"])
async def test_none_is_left_running(how: str) -> None:
    running: set[int] = set()
    started = asyncio.Event()

    async def forever(i: int) -> None:
        running.add(i)
        try:
            started.set()
            await asyncio.Event().wait()
        finally:
            running.discard(i)

    async def fail() -> None:
        await started.wait()
        raise OSError("no")

    waiting = asyncio.create_task(gather_all([forever(0), forever(1), *([fail()] if how == "one fails" else [])]))
    await started.wait()
    if how == "the caller is cancelled":
        waiting.cancel()
    with pytest.raises((OSError, asyncio.CancelledError)):
        await waiting
    assert running == set()


async def test_sync_code_may_wait_even_inside_a_running_loop() -> None:
    assert run_sync(value(3)) == 3


def test_one_loop_serves_all_threads() -> None:
    async def loop_id() -> int:
        return id(asyncio.get_running_loop())

    seen = [run_sync(loop_id())]
    thread = threading.Thread(target=lambda: seen.append(run_sync(loop_id())))
    thread.start()
    thread.join()
    assert seen[0] == seen[1]


def test_each_thread_keeps_a_loop_for_its_runs() -> None:
    async def running() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    seen = [run_in_thread_loop(running()), run_in_thread_loop(running())]
    thread = threading.Thread(target=lambda: seen.append(run_in_thread_loop(running())))
    thread.start()
    thread.join()
    assert seen[0] is seen[1] is not seen[2]
    assert not any(loop.is_closed() for loop in seen)


def test_an_interrupt_in_a_task_ends_all_tasks_of_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    ended = list[str]()

    async def interrupted() -> None:
        await asyncio.sleep(0)
        raise KeyboardInterrupt

    async def other(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(name)

    async def failing() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise OSError("no") from None

    async def main() -> None:
        background = [asyncio.create_task(other("background")), asyncio.create_task(failing())]
        await gather_all([within(None, interrupted, name="agent"), other("sibling")])
        await gather_all(background)

    with pytest.raises(KeyboardInterrupt):
        run_in_thread_loop(main())
    gc.collect()
    assert sorted(ended) == ["background", "sibling"]
    assert run_in_thread_loop(value(1)) == 1
    assert not caplog.records


async def test_each_begins_before_a_cancellation_of_the_caller_ends_it() -> None:
    begun = list[int]()

    async def begin(i: int) -> None:
        begun.append(i)
        await asyncio.Event().wait()

    caller = asyncio.create_task(gather_all(map(begin, range(2))))
    asyncio.get_running_loop().call_soon(caller.cancel)  # in the iteration of the loop that makes the tasks
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert begun == [0, 1]


async def nothing() -> list[Span]:
    return []


async def passes(task: Task, answer: str) -> bool:
    return True


@pytest.mark.parametrize(
    "work",
    [
        partial(within, None, nothing, name="nothing"),
        partial(draw, [nothing, nothing]),
        partial(judge, passes, TASK, [span("attempt")] * 2),
    ],
    ids=["within", "draw", "judge"],
)
def test_an_interrupt_before_tasks_begin_leaves_no_coroutine_unawaited(work: Callable[[], Awaitable[object]]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    async def main() -> None:
        asyncio.get_running_loop().call_soon(interrupt)
        await work()

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    gc.collect()  # pytest fails on what Python warns about


def test_an_interrupt_in_the_main_task_is_raised(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_thread_loop(main())
    gc.collect()
    assert not caplog.records


def test_waiting_for_oneself_is_refused() -> None:
    async def inner() -> int:
        return run_sync(value(1))

    with pytest.raises(RuntimeError, match="await it instead"):
        run_sync(inner())


async def test_in_turn_uses_threads_again_except_for_one_that_hangs() -> None:
    hanging, release = set[int](), threading.Event()

    def hang() -> None:
        hanging.add(threading.get_ident())
        release.wait()

    with pytest.raises(OverrunError):
        await in_turn(hang, limit_s=0.01)
    used = [await in_turn(threading.get_ident) for _ in range(50)]
    assert len(set(used)) < len(used)
    assert not hanging & set(used)
    release.set()
