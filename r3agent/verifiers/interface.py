"""The interface of a verifier: any callable `(task, answer) -> bool | float | Verdict | PENDING`, sync or async.

A sync verifier runs in a thread. `answer` is the text of the reply after its thinking, which is `answer.thinking`; its
tool calls are `answer.tool_calls`, and `answer.messages` are those of an agent's try: its answers, tool calls and their
results. Both arguments are copies of what is recorded. A third argument, `environment`, is the world of an agent's try,
or what the try left behind; see `r3agent.episodes.agents`. A boolean or score can be a scalar of NumPy or PyTorch. If a
verifier raises or returns anything else, the episode has an error that says nothing about the model. A verifier that
keeps connections has an async `aclose`. One that must load something first may have a `warm_up`, which the audit calls
before it measures time. `PENDING` leaves the try without a verdict: it is not retried, and `r3agent label` adds the
verdict later.

An answer that was cut off, at `max_tokens` or by a content filter, fails without asking the verifier.
"""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from enum import Enum
from functools import partial
from typing import Any, Literal, TypeAlias

from langgraph.errors import GraphBubbleUp

from r3agent._util.aio import gather_all, in_turn
from r3agent._util.messages import explain
from r3agent._util.within import OverrunError, is_failure, within
from r3agent.errors import VerifierError
from r3agent.records.json_values import copy_json, plain
from r3agent.records.thinking import find_reasoning, split_thinking
from r3agent.records.trajectory import Message, Span, Task, Try, Verdict
from r3agent.telemetry import genai
from r3agent.telemetry.tracing import now_ns


class Pending(Enum):
    """Type of `PENDING`."""

    PENDING = "pending"


PENDING: Literal[Pending.PENDING] = Pending.PENDING
"""Judgement for a verdict that is not known yet; not `None`, which a verifier without a return statement returns."""

Judgement: TypeAlias = bool | float | Verdict | Pending


class Answer(str):
    """Text of a reply, with its tool calls and thinking."""

    tool_calls: tuple[dict[str, Any], ...] = ()
    thinking: str = ""
    """Thinking from a separate field of the response, or from `<think>…</think>` at the start of the text."""
    messages: tuple[Message, ...] = ()
    """Messages of an agent's try after its prompt: answers, tool calls, their results, and the last answer."""

    @classmethod
    def of(cls, message: Message) -> Answer:
        """Return the answer in an assistant message."""
        inside, text = split_thinking(message.get("content") or "")
        beside = find_reasoning(message)
        answer = cls(text)
        answer.tool_calls = tuple(message.get("tool_calls") or ())
        answer.thinking = inside if beside is None else beside[1] + inside
        return answer


Verifier: TypeAlias = (
    Callable[[Task, Answer], Judgement | Awaitable[Judgement]]
    | Callable[[Task, Answer, Any], Judgement | Awaitable[Judgement]]
)


POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

CutOff: TypeAlias = Literal["fail", "judge"]
"""Treatment of an answer that was cut off: it fails, or the verifier judges the part that is there."""


async def judge(
    verifier: Verifier,
    task: Task,
    tries: Sequence[Span | Try],
    *,
    cut_off: CutOff = "fail",
    environment: Any = None,
    timeout_s: float | None = None,
) -> list[Verdict | None]:
    """Return a verdict for each try, `None` if it is pending.

    An async verifier is called for all tries concurrently, a sync one for one after another, in a thread.

    Args:
        environment: third argument of a verifier that takes one.
        timeout_s: time limit of one verdict. A sync verifier that exceeds it goes on in its thread, for which nothing
            waits.

    Raises:
        VerifierError: the verifier raised, took longer, or returned something that is not a judgement.
    """
    began = now_ns()
    whole = [i for i, a_try in enumerate(tries) if cut_off == "judge" or not a_try.unfinished]
    # Each call has copies: a verifier may change what it gets, and the record and the other calls must not.
    called: Callable[..., Judgement | Awaitable[Judgement]] = verifier
    if takes_environment(verifier):
        called = partial(_with_environment, verifier, environment)
    calls = [partial(called, task.fresh(), _answer_of(tries[i])) for i in whole]

    def call_all() -> list[Judgement | Awaitable[Judgement]]:
        with _as_verifier_error(verifier, task, timeout_s):
            return [call() for call in calls]

    async def settle(i: int, call: Callable[[], Judgement | Awaitable[Judgement]]) -> Verdict | None:
        with genai.evaluation(_name(verifier), tries[i], began) as span, _as_verifier_error(verifier, task, timeout_s):
            judgement = call()
            settled: Any = judgement
            if inspect.isawaitable(judgement):
                settled = await within(timeout_s, lambda: judgement, name=_name(verifier))
            verdict = None if settled is PENDING else verdict_of(settled)
            genai.judged(span, verdict)
            return verdict

    is_async = inspect.iscoroutinefunction(verifier) or inspect.iscoroutinefunction(verifier.__call__)
    judging: Sequence[Callable[[], Judgement | Awaitable[Judgement]]] = calls
    if calls and not is_async:  # one thread for all tries, as it costs more than a verdict; episodes run concurrently
        with _as_verifier_error(verifier, task, timeout_s):
            judgements = await in_turn(call_all, None if timeout_s is None else timeout_s * len(calls))
        is_async = any(map(inspect.isawaitable, judgements))
        judging = [partial(_known, judgement) for judgement in judgements]
    settling = (settle(*one) for one in zip(whole, judging, strict=True))
    # A task costs more than a verdict that is there.
    verdicts = await gather_all(settling) if is_async else [await one for one in settling]
    found = dict(zip(whole, verdicts, strict=True))
    return [found[i] if i in found else _cut_off(a_try) for i, a_try in enumerate(tries)]


def takes_environment(verifier: Callable[..., Any], *, required: bool = False) -> bool:
    """Return True if a verifier has a third positional parameter that is required, or named `environment`.

    Args:
        required: one that has a default does not count.
    """
    try:
        parameters = [p for p in inspect.signature(verifier).parameters.values() if p.kind in POSITIONAL]
    except (TypeError, ValueError):  # a callable without a signature
        return False
    third = parameters[2] if len(parameters) > 2 else None
    if third is None:
        return False
    return third.default is third.empty or (third.name == "environment" and not required)


def _with_environment(verifier: Callable[..., Any], environment: Any, task: Task, answer: Answer) -> Any:
    return verifier(task, answer, environment)


def _known(judgement: Judgement | Awaitable[Judgement]) -> Judgement | Awaitable[Judgement]:
    return judgement


def _answer_of(a_try: Span | Try) -> Answer:
    answer = Answer.of(copy_json(a_try.message))
    if isinstance(a_try, Try):
        answer.messages = tuple(copy_json(a_try.messages))
    return answer


def _cut_off(a_try: Span | Try) -> Verdict:
    """Fail an answer that is not whole, and say where it ends."""
    span = a_try.last if isinstance(a_try, Try) else a_try
    why = "cut off by the endpoint's content filter"
    if span.unfinished != "content_filter":
        sampled = f" after {span.completion_tokens} tokens" if span.completion_tokens else ""
        limit = span.sampling.get("max_tokens")
        why = f"cut off{sampled}{f', at max_tokens = {limit}' if limit else ''}: the answer is not whole"
    with genai.evaluation("cut_off", a_try) as evaluation:
        genai.judged(evaluation, verdict := Verdict.failed(why))
    return verdict


def needed(task: Task, key: str) -> Any:
    """Return a field of a task's `info` that a verifier reads.

    Raises:
        KeyError: the task lacks it; the message has the setting that gives it.
    """
    if key not in task.info:
        setting = (
            "name its column with task.params.answer" if key == "answer" else "give the rows a column of that name"
        )
        if not task.info:  # as a recording whose application named no task
            setting += f"; where the task is recorded, pass trace(task={{'messages': ..., 'info': {{{key!r}: ...}}}})"
        raise KeyError(f"info has {sorted(task.info)} and no {key!r}, which the verifier reads; {setting}")
    return task.info[key]


def warm_up(verifier: Verifier) -> None:
    """Call a verifier's `warm_up` if it has one, so that its first verdict does not wait for loading."""
    if (load := getattr(verifier, "warm_up", None)) is not None:
        load()


async def close(verifier: Verifier) -> None:
    """Close a verifier's connections in this event loop, if it has an `aclose`."""
    if (aclose := getattr(verifier, "aclose", None)) is not None:
        await aclose()


def verdict_of(judgement: object) -> Verdict:
    """Convert a verifier's return value to a verdict.

    Raises:
        TypeError: the value is not a judgement.
    """
    match value := plain(judgement):
        case Verdict():
            return value
        case bool():
            return Verdict(passed=value, score=float(value))
        case int() | float() if 0 <= value <= 1:
            return Verdict(passed=value >= 1, score=value)
        case _:
            raise TypeError(
                f"returned {reprlib.repr(judgement)}; return True, False, a score from 0 to 1 (1 passes), "
                "a Verdict or PENDING"
            )


@contextmanager
def _as_verifier_error(verifier: Verifier, task: Task, timeout_s: float | None) -> Generator[None]:
    """Convert exceptions to `VerifierError`, except LangGraph's interrupts: a verifier may ask a person."""
    try:
        yield
    except (GraphBubbleUp, VerifierError):
        raise
    except BaseException as error:
        if not is_failure(error):
            raise
        fault = f"failed on task {task.id!r}: {type(error).__name__}: {_text(error)}"
        if isinstance(error, OverrunError):
            fault = (
                f"gave no verdict on task {task.id!r} within verify_timeout_s = {timeout_s:g}; give it a limit of its "
                "own, or raise verify_timeout_s"
            )
        raise VerifierError(f"{_name(verifier)} {fault}") from error


def _text(error: BaseException) -> str:
    return explain(error, Verdict) if isinstance(error, Exception) else str(error)


def _name(verifier: Verifier) -> str:
    function = verifier.func if isinstance(verifier, partial) else verifier
    return getattr(function, "__qualname__", type(function).__qualname__)
