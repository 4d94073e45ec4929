"""What decides success. A verifier is any callable `(task, answer) -> bool | float | Verdict`.

It is a shipped one by name, the user's `module:callable`, or an entry point of the group `r3agent.verifiers`. Its
settings are its keyword arguments; where it is a class they are those of making one.

It may be sync (run in a thread) or async. `answer` is the text of the reply, with its tool calls as
`answer.tool_calls`. A verifier that raises, or returns anything else, is an error of the episode and says
nothing about the model.
"""

from __future__ import annotations

import asyncio
import inspect
import reprlib
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias, cast

from langgraph.errors import GraphBubbleUp

from r3agent._async import together
from r3agent.errors import ConfigError, R3Error, VerifierError
from r3agent.imports import entry_points, load_attribute
from r3agent.trajectory import Message, Span, Task, Verdict

Judgement: TypeAlias = bool | float | Verdict


class Answer(str):
    """The text of a reply, with the tool calls that came with it."""

    tool_calls: tuple[dict[str, Any], ...] = ()

    @classmethod
    def of(cls, message: Message) -> Answer:
        """The answer in an assistant message."""
        answer = cls(message.get("content") or "")
        answer.tool_calls = tuple(message.get("tool_calls") or ())
        return answer


Verifier: TypeAlias = Callable[[Task, Answer], Judgement | Awaitable[Judgement]]

VERIFIERS: dict[str, str] = {
    "countdown": "r3agent.verifiers.countdown:countdown",
    "exact": "r3agent.verifiers.exact:exact",
    "function_call": "r3agent.verifiers.function_call:function_call",
}
"""A new verifier is a file in this folder and a line here; it is imported when it is asked for."""

GROUP = "r3agent.verifiers"
"""Of entry points, for packages that bring verifiers."""


def find_verifier(name: str, **params: Any) -> Verifier:
    """A verifier by name, with its settings.

    Raises:
        ConfigError: there is none, with the names that are known; or it does not take `params`.
    """
    known = {**entry_points(GROUP), **VERIFIERS}
    if name not in known and ":" not in name:
        raise ConfigError(f"verifier {name!r} is unknown; use one of {sorted(known)} or your own as module:callable")
    found = load_attribute(known.get(name, name))
    if not callable(found):
        raise ConfigError(
            f"verifier {name!r} is a {type(found).__name__}; it must be a callable (task, answer) -> bool"
        )
    try:
        if isinstance(found, type):
            return cast(Verifier, found(**params))
        if params:
            inspect.signature(found).bind("task", "answer", **params)
    except R3Error:
        raise
    except Exception as error:  # a user's class may raise anything
        raise ConfigError(f"verifier {name!r} with {params}: {type(error).__name__}: {error}") from error
    return cast(Verifier, partial(found, **params) if params else found)


async def judge(verifier: Verifier, task: Task, spans: Sequence[Span]) -> list[Verdict]:
    """A verdict for each span: from an async verifier all at once, from a sync one in a thread, one after the other.

    Raises:
        VerifierError: it raised, or returned something that is not a judgement.
    """
    answers = [Answer.of(span.message) for span in spans]

    def ask() -> list[Judgement | Awaitable[Judgement]]:
        with _blaming(verifier, task):
            return [verifier(task, answer) for answer in answers]

    async def settle(judgement: Judgement | Awaitable[Judgement]) -> Verdict:
        with _blaming(verifier, task):
            return _verdict(await judgement if inspect.isawaitable(judgement) else judgement)

    is_async = inspect.iscoroutinefunction(verifier) or inspect.iscoroutinefunction(verifier.__call__)
    # One thread for all, because a thread costs more than a verdict does; episodes still run side by side.
    asked = ask() if is_async else await asyncio.to_thread(ask)
    return await together(settle(judgement) for judgement in asked)


def _verdict(judgement: object) -> Verdict:
    match judgement:
        case Verdict():
            return judgement
        case bool():
            return Verdict(passed=judgement, score=float(judgement))
        case int() | float() if 0 <= judgement <= 1:
            return Verdict(passed=judgement >= 1, score=judgement)
        case _:
            raise TypeError(
                f"returned {reprlib.repr(judgement)}; return True, False, a score from 0 to 1 (1 passes) or a Verdict"
            )


@contextmanager
def _blaming(verifier: Verifier, task: Task) -> Generator[None, None, None]:
    """Whatever goes wrong inside is the verifier's error, but for LangGraph's interrupts: it may ask a person."""
    try:
        yield
    except GraphBubbleUp:
        raise
    except Exception as error:
        named = verifier.func if isinstance(verifier, partial) else verifier
        name = getattr(named, "__qualname__", type(named).__qualname__)
        raise VerifierError(f"{name} failed on task {task.id!r}: {type(error).__name__}: {error}") from error
