"""A verifier decides whether an answer succeeds: any callable `(task, answer) -> bool | float | Verdict`.

It may be sync (run in a thread) or async. `answer` is the text of the reply, with its tool calls as
`answer.tool_calls`. A verifier that raises, or returns anything else, is an error of the episode and says
nothing about the model.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from langgraph.errors import GraphBubbleUp

from r3agent.errors import ConfigError, VerifierError
from r3agent.imports import load_attribute
from r3agent.trajectory import Span, Task, Verdict
from r3agent.verifiers.countdown import countdown
from r3agent.verifiers.exact import exact

Judgement: TypeAlias = bool | float | Verdict


class Answer(str):
    """The text of a reply, with the tool calls that came with it."""

    tool_calls: tuple[dict[str, Any], ...] = ()

    @classmethod
    def of(cls, span: Span) -> Answer:
        answer = cls(span.text)
        answer.tool_calls = span.tool_calls
        return answer


Verifier: TypeAlias = Callable[[Task, Answer], Judgement | Awaitable[Judgement]]

VERIFIERS: dict[str, Verifier] = {"countdown": countdown, "exact": exact}


def find_verifier(name: str) -> Verifier:
    """A shipped verifier by name, or the user's as `module:callable`.

    Raises:
        ConfigError: there is none, with the names that are known.
    """
    if name in VERIFIERS:
        return VERIFIERS[name]
    if ":" not in name:
        raise ConfigError(
            f"verifier {name!r} is unknown; use one of {sorted(VERIFIERS)} or your own as module:callable"
        )
    found = load_attribute(name)
    if not callable(found):
        raise ConfigError(
            f"verifier {name!r} is a {type(found).__name__}; it must be a callable (task, answer) -> bool"
        )
    return found


async def verdict_of(verifier: Verifier, task: Task, span: Span) -> Verdict:
    """Run a verifier on a span.

    Raises:
        VerifierError: it raised, or returned something that is not a judgement.
    """
    answer = Answer.of(span)
    try:
        if inspect.iscoroutinefunction(verifier) or inspect.iscoroutinefunction(getattr(verifier, "__call__", None)):  # noqa: B004
            judgement = await verifier(task, answer)  # pyright: ignore[reportGeneralTypeIssues]
        else:
            judgement = await asyncio.to_thread(verifier, task, answer)
    except GraphBubbleUp:  # LangGraph's interrupts pass through: a verifier may ask a person
        raise
    except Exception as error:
        raise VerifierError(f"{_name(verifier)} raised {type(error).__name__} on task {task.id!r}: {error}") from error
    match judgement:
        case Verdict():
            return judgement
        case bool():
            return Verdict(passed=judgement, score=float(judgement))
        case int() | float() if 0 <= judgement <= 1:
            return Verdict(passed=judgement >= 1, score=judgement)
        case _:
            raise VerifierError(
                f"{_name(verifier)} returned {judgement!r} on task {task.id!r}; "
                "return True or False, a score from 0 to 1 (1 passes), or a Verdict"
            )


def _name(verifier: Verifier) -> str:
    return getattr(verifier, "__qualname__", type(verifier).__qualname__)
