"""The interface of a verifier: any callable `(task, answer) -> bool | float | Verdict | PENDING`, sync or async.

A sync one is run in a thread. `answer` is the text of the reply after its thinking, with the latter as
`answer.thinking` and its tool calls as `answer.tool_calls`. A verifier that raises, or returns anything else, is an
error of the episode and says nothing about the model. One that keeps connections has an async `aclose`; one whose first
verdict waits for something to load may have a `warm_up`, which the audit calls before it looks at the clock. `PENDING`
leaves the try without a verdict; it is not tried again, and `r3agent label` gives the verdict later.
"""

from __future__ import annotations

import asyncio
import inspect
import reprlib
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from enum import Enum
from functools import partial
from typing import Any, Literal, TypeAlias

from langgraph.errors import GraphBubbleUp

from r3agent._util.aio import gather_all
from r3agent.errors import VerifierError
from r3agent.records.thinking import find_reasoning, split_thinking
from r3agent.records.trajectory import Message, Span, Task, Verdict


class Pending(Enum):
    """The type of `PENDING`."""

    PENDING = "pending"


PENDING: Literal[Pending.PENDING] = Pending.PENDING
"""Returned while the verdict is not known yet; `None` is what a verifier returns that forgot to return."""

Judgement: TypeAlias = bool | float | Verdict | Pending


class Answer(str):
    """The text of a reply, with the tool calls that came with it and the thinking that led to it."""

    tool_calls: tuple[dict[str, Any], ...] = ()
    thinking: str = ""
    """The thinking that the server returned beside the text, or that the text began with as `<think>…</think>`."""

    @classmethod
    def of(cls, message: Message) -> Answer:
        """Return the answer in an assistant message."""
        inside, text = split_thinking(message.get("content") or "")
        beside = find_reasoning(message)
        answer = cls(text)
        answer.tool_calls = tuple(message.get("tool_calls") or ())
        answer.thinking = inside if beside is None else beside[1] + inside
        return answer


Verifier: TypeAlias = Callable[[Task, Answer], Judgement | Awaitable[Judgement]]


async def judge(verifier: Verifier, task: Task, spans: Sequence[Span]) -> list[Verdict | None]:
    """Return a verdict for each span, `None` where it is pending.

    An async verifier is called for all at once, a sync one in a thread, one after the other.

    Raises:
        VerifierError: it raised, or returned something that is not a judgement.
    """
    answers = [Answer.of(span.message) for span in spans]

    def call() -> list[Judgement | Awaitable[Judgement]]:
        with _as_verifier_error(verifier, task):
            return [verifier(task, answer) for answer in answers]

    async def settle(judgement: Judgement | Awaitable[Judgement]) -> Verdict | None:
        with _as_verifier_error(verifier, task):
            settled = await judgement if inspect.isawaitable(judgement) else judgement
            return None if settled is PENDING else verdict_of(settled)

    is_async = inspect.iscoroutinefunction(verifier) or inspect.iscoroutinefunction(verifier.__call__)
    # One thread for all, because a thread costs more than a verdict does; episodes still run side by side.
    judgements = call() if is_async else await asyncio.to_thread(call)
    return await gather_all(settle(judgement) for judgement in judgements)


def warm_up(verifier: Verifier) -> None:
    """Load what a verifier's first verdict would wait for, if it has a `warm_up`."""
    if (load := getattr(verifier, "warm_up", None)) is not None:
        load()


async def close(verifier: Verifier) -> None:
    """Close what a verifier keeps open in this event loop, if it has an `aclose`."""
    if (aclose := getattr(verifier, "aclose", None)) is not None:
        await aclose()


def verdict_of(judgement: object) -> Verdict:
    """Convert what a verifier returned to a verdict.

    Raises:
        TypeError: it is not a judgement.
    """
    match judgement:
        case Verdict():
            return judgement
        case bool():
            return Verdict(passed=judgement, score=float(judgement))
        case int() | float() if 0 <= judgement <= 1:
            return Verdict(passed=judgement >= 1, score=judgement)
        case _:
            raise TypeError(
                f"returned {reprlib.repr(judgement)}; return True, False, a score from 0 to 1 (1 passes), "
                "a Verdict or PENDING"
            )


@contextmanager
def _as_verifier_error(verifier: Verifier, task: Task) -> Generator[None]:
    """Raise exceptions as the verifier's error, but not LangGraph's interrupts: a verifier may ask a person."""
    try:
        yield
    except GraphBubbleUp:
        raise
    except Exception as error:
        function = verifier.func if isinstance(verifier, partial) else verifier
        name = getattr(function, "__qualname__", type(function).__qualname__)
        raise VerifierError(f"{name} failed on task {task.id!r}: {type(error).__name__}: {error}") from error
