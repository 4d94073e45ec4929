"""What decides success. A verifier is any callable `(task, answer) -> bool | float | Verdict | PENDING`.

It is a shipped one by name, the user's `module:callable`, or an entry point of the group `r3agent.verifiers`. Its
settings are its keyword arguments; where it is a class they are those of making one.

It may be sync (run in a thread) or async. `answer` is the text of the reply after its thinking, with the latter as
`answer.thinking` and its tool calls as `answer.tool_calls`. A verifier that raises, or returns anything else, is an
error of the episode and says nothing about the model. One that keeps connections has an async `aclose`; one whose
first verdict waits for something to load may have a `warm_up`, which the audit calls before it looks at the clock.
`PENDING` says that nobody knows yet: the try is left without a verdict and is not tried again, until `r3agent label`
says how it went.
"""

from __future__ import annotations

import asyncio
import inspect
import reprlib
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from enum import Enum
from functools import partial
from typing import Any, Literal, TypeAlias, cast

from langgraph.errors import GraphBubbleUp

from r3agent._util.aio import gather_all
from r3agent._util.imports import entry_points, load_attribute
from r3agent.errors import ConfigError, R3Error, VerifierError
from r3agent.records.prompts import Kind
from r3agent.records.thinking import find_reasoning, split_thinking
from r3agent.records.trajectory import Message, Span, Task, Verdict


class Pending(Enum):
    """The type of `PENDING`."""

    PENDING = "pending"


PENDING: Literal[Pending.PENDING] = Pending.PENDING
"""What a verifier returns while nobody knows yet; `None` would be what one returns that forgot to."""

Judgement: TypeAlias = bool | float | Verdict | Pending


class Answer(str):
    """The text of a reply, with the tool calls that came with it and the thinking that led to it."""

    tool_calls: tuple[dict[str, Any], ...] = ()
    thinking: str = ""
    """What the server handed over beside the text, or the text began with as `<think>…</think>`."""

    @classmethod
    def of(cls, message: Message) -> Answer:
        """The answer in an assistant message."""
        inside, text = split_thinking(message.get("content") or "")
        beside = find_reasoning(message)
        answer = cls(text)
        answer.tool_calls = tuple(message.get("tool_calls") or ())
        answer.thinking = inside if beside is None else beside[1] + inside
        return answer


Verifier: TypeAlias = Callable[[Task, Answer], Judgement | Awaitable[Judgement]]

VERIFIERS: dict[str, str] = {
    "code": "r3agent.verifiers.code:Code",
    "countdown": "r3agent.verifiers.countdown:countdown",
    "exact": "r3agent.verifiers.text:exact",
    "function_call": "r3agent.verifiers.function_call:function_call",
    "json_schema": "r3agent.verifiers.json_schema:JsonSchema",
    "later": "r3agent.verifiers.human:later",
    "llm_judge": "r3agent.verifiers.llm_judge:LLMJudge",
    "math": "r3agent.verifiers.math_answer:Math",
    "normalised": "r3agent.verifiers.text:normalised",
    "person": "r3agent.verifiers.human:person",
    "reasoning_gym": "r3agent.verifiers.reasoning_gym:ReasoningGym",
    "regex": "r3agent.verifiers.text:Regex",
    "sql": "r3agent.verifiers.sql:Sql",
}
"""A new verifier is a file in this folder and a line here; it is imported when it is asked for."""

KINDS: dict[str, Kind] = {"code": "code", "function_call": "function_call", "sql": "code"}
"""What the tasks of a verifier ask for, which the default prompts go by; of all others it is `general`."""

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
        raise ConfigError(
            f"verifier {name!r} with {params}: {type(error).__name__}: {error}; its settings are task.verifier_params"
        ) from error
    return cast(Verifier, partial(found, **params) if params else found)


async def judge(verifier: Verifier, task: Task, spans: Sequence[Span]) -> list[Verdict | None]:
    """A verdict for each span: from an async verifier all at once, from a sync one in a thread, one after the other.
    `None` where it is pending.

    Raises:
        VerifierError: it raised, or returned something that is not a judgement.
    """
    answers = [Answer.of(span.message) for span in spans]

    def ask() -> list[Judgement | Awaitable[Judgement]]:
        with _blaming(verifier, task):
            return [verifier(task, answer) for answer in answers]

    async def settle(judgement: Judgement | Awaitable[Judgement]) -> Verdict | None:
        with _blaming(verifier, task):
            found = await judgement if inspect.isawaitable(judgement) else judgement
            return None if found is PENDING else verdict_of(found)

    is_async = inspect.iscoroutinefunction(verifier) or inspect.iscoroutinefunction(verifier.__call__)
    # One thread for all, because a thread costs more than a verdict does; episodes still run side by side.
    asked = ask() if is_async else await asyncio.to_thread(ask)
    return await gather_all(settle(judgement) for judgement in asked)


def warm_up(verifier: Verifier) -> None:
    """Load what a verifier's first verdict would wait for, if it says how."""
    if (load := getattr(verifier, "warm_up", None)) is not None:
        load()


async def close(verifier: Verifier) -> None:
    """End what a verifier keeps open in this event loop, if it keeps anything."""
    if (aclose := getattr(verifier, "aclose", None)) is not None:
        await aclose()


def verdict_of(judgement: object) -> Verdict:
    """What a verifier may return, as a verdict.

    Raises:
        TypeError: it is none.
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
