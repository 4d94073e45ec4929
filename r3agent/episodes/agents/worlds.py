"""The world of one try: opened before it and closed after it, whatever happens, each within the limit of a try.

A world is opened and closed in one task, as task groups and timeouts inside of it need; the try runs in that task too.
If the code of the world swallows its cancellation, the task is left behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from langgraph.errors import GraphBubbleUp

from r3agent._util.messages import shorten
from r3agent._util.within import GRACE_S, is_failure, leave_behind, settled
from r3agent.episodes.agents.base import Environment
from r3agent.errors import AgentError, ConfigError
from r3agent.records.json_values import any_text
from r3agent.records.trajectory import Task

MAX_CHARS = 400
"""Maximum length of an agent's error in a record."""


class WorldError(AgentError):
    """The environment of a try cannot be opened or closed."""


async def in_world(
    environment: Environment, task: Task, limit_s: float | None, run: Callable[[Any], Awaitable[None]]
) -> None:
    """Run a try in a world of its own.

    The world is closed with the error that ends the try, and cannot suppress it.

    Raises:
        WorldError: it cannot be opened or closed.
    """
    stuck: asyncio.Future[WorldError] = asyncio.get_running_loop().create_future()
    """Error of a world whose code goes on after its cancellation."""

    async def run_all() -> None:
        async with _opened(environment, task, limit_s, stuck) as world:
            await run(world)

    running = asyncio.create_task(settled(run_all))
    try:
        try:
            await asyncio.wait({running, stuck}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            running.cancel()
            await asyncio.wait({running, stuck}, return_when=asyncio.FIRST_COMPLETED)
            raise
    finally:
        leave_behind(running, f"the environment of task {task.id!r}")
    if not running.done():
        raise stuck.result()
    _, error = running.result()
    if error is not None:
        raise error


@asynccontextmanager
async def _opened(
    environment: Environment, task: Task, limit_s: float | None, stuck: asyncio.Future[WorldError]
) -> AsyncGenerator[Any]:
    with _as_world_error(task, "opened"):
        world: Any = environment(task.model_copy(deep=True))
        if not hasattr(world, "__aenter__"):
            raise ConfigError(
                f"environment returned {shorten(world)}: no async context manager; decorate the factory with "
                "contextlib.asynccontextmanager"
            )
    with _as_world_error(task, "opened"), _alarm(task, "opened", limit_s, stuck):
        entered = await _within(limit_s, world.__aenter__())
    if stuck.done():  # nobody waits for the try any more
        await world.__aexit__(None, None, None)
        raise stuck.result()
    try:
        yield entered
    except BaseException as error:
        try:
            with _alarm(task, "closed", limit_s, stuck):
                await _within(limit_s, world.__aexit__(type(error), error, error.__traceback__))
        except BaseException as later:  # the first error takes precedence
            if not is_failure(later):
                raise
        raise
    with _as_world_error(task, "closed"), _alarm(task, "closed", limit_s, stuck):
        await _within(limit_s, world.__aexit__(None, None, None))


@contextmanager
def _alarm(task: Task, done: str, limit_s: float | None, stuck: asyncio.Future[WorldError]) -> Generator[None]:
    """Settle `stuck` if the block goes on after its limit and the grace period."""

    def ring() -> None:
        if not stuck.done():
            text = f"TimeoutError: {_overrun(limit_s)}, and swallows its cancellation"
            stuck.set_result(WorldError(f"the environment of task {task.id!r} cannot be {done}: {text}"))

    timer = None if limit_s is None else asyncio.get_running_loop().call_later(limit_s + GRACE_S, ring)
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()


async def _within(limit_s: float | None, coroutine: Awaitable[Any]) -> Any:
    """Wait for a world to open or close, at most as long as a try may take."""
    timeout = asyncio.timeout(limit_s)
    try:
        async with timeout:
            return await coroutine
    except TimeoutError:
        if timeout.expired():
            raise TimeoutError(_overrun(limit_s)) from None
        raise


def _overrun(limit_s: float | None) -> str:
    return f"it took longer than try_timeout_s = {limit_s:g}"


@contextmanager
def _as_world_error(task: Task, done: str) -> Generator[None]:
    """Map the errors of an environment onto `WorldError`; interrupts and `ConfigError` pass."""
    try:
        yield
    except (GraphBubbleUp, ConfigError):
        raise
    except BaseException as error:
        if not is_failure(error):
            raise
        text = described(error)[:MAX_CHARS]
        raise WorldError(f"the environment of task {task.id!r} cannot be {done}: {text}") from error


def described(error: BaseException) -> str:
    """Return the kind and text of an error, with those of the errors in a group."""
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return "; ".join([f"{type(error).__name__}: {any_text(error)}", *map(described, inner)])
