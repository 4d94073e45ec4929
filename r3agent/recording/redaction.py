"""Redaction of a record before it is stored: its texts and their tokens."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias

from r3agent.records.trajectory import EpisodeError, Span, Task, Trajectory

Redact: TypeAlias = Callable[[str], str]
"""Function that takes a text and returns it without private data."""

NOTE = "redacted: its tokens spelled what was taken out"

PAYLOAD = re.compile(
    r"data:[\w.+/-]{0,100}(?:;[\w=.+-]{1,100}){0,5};base64,[A-Za-z0-9+/=_-]*"
    r"|(?<![A-Za-z0-9+/=_-])[A-Za-z0-9+/=_-]{1000,}"
)
"""Images, audio and files in base64, which are no text: a data URL, or a run without its prefix."""

KEPT = {"role", "type", "id", "tool_call_id"}
"""Message keys whose values are not redacted, because they are not free text."""


def redact_trajectory(trajectory: Trajectory, redact: Redact) -> Trajectory:
    """Apply `redact` to every text of a trajectory's task, spans, verdicts, error and metadata.

    A span whose prompt or answer changes loses its token ids and logprobs, because they contain the text, and becomes
    `eval-only`. A task id that is the hash of the messages is computed again from the redacted messages. Tokens without
    a text in the record, such as hidden reasoning, are kept if nothing in the conversation was redacted. Payloads
    in base64 are kept, and `redact` gets the text around them; it gets the same text once.
    """
    redact = cache(_around_payloads(redact))
    error = trajectory.error
    cleaned = trajectory.changed(
        task=_task(trajectory.task, redact),
        spans=tuple(_span(span, redact) for span in trajectory.spans),
        error=error and _error(error, redact),
        metadata=_strings(trajectory.metadata, redact),
    )
    spans = [
        now if _tokenized_content(trajectory, was) == _tokenized_content(cleaned, now) else _without_tokens(now)
        for was, now in zip(trajectory.spans, cleaned.spans, strict=True)
    ]
    return cleaned.changed(spans=tuple(spans))


def _around_payloads(redact: Redact) -> Redact:
    """Apply `redact` to the parts of a text between payloads, over which many regular expressions take very long."""

    def redact_parts(text: str) -> str:
        parts: list[str] = []
        end = 0
        for payload in PAYLOAD.finditer(text):
            parts += [redact(before) if (before := text[end : payload.start()]) else "", payload[0]]
            end = payload.end()
        rest = text[end:]
        return "".join(parts) + (redact(rest) if rest or not parts else "")

    return redact_parts


def _task(task: Task, redact: Redact) -> Task:
    fields = _strings(task.model_dump(mode="json", exclude={"id"}), redact)
    named = task.id != Task.model_validate({"messages": task.messages}).id
    return Task.model_validate({**fields, **({"id": task.id} if named else {})})


def _span(span: Span, redact: Redact) -> Span:
    verdict = span.verdict
    if verdict is not None and verdict.feedback is not None:
        verdict = verdict.model_copy(update={"feedback": redact(verdict.feedback)})
    return span.model_copy(
        update={
            "text": redact(span.text),
            "reasoning": None if span.reasoning is None else redact(span.reasoning),
            "tool_calls": tuple(_strings(span.tool_calls, redact)),
            "extra": _strings(span.extra, redact),
            "request": tuple(_strings(span.request, redact)),
            "verdict": verdict,
            "answer": None if span.answer is None else redact(span.answer),
            "error": span.error and _error(span.error, redact),
        }
    )


def _error(error: EpisodeError, redact: Redact) -> EpisodeError:
    return EpisodeError(kind=error.kind, message=redact(error.message))


def _strings(value: Any, redact: Redact) -> Any:
    """Redact every string of a JSON value, except those under the keys of `KEPT`."""
    match value:
        case str():
            return redact(value)
        case dict():
            return {k: v if k in KEPT else _strings(v, redact) for k, v in value.items()}
        case list() | tuple():
            return [_strings(inner, redact) for inner in value]
        case _:
            return value


def _tokenized_content(trajectory: Trajectory, span: Span) -> Any:
    """Return all content that is in the tokens of a span's prompt and answer."""
    return trajectory.prompt(span), trajectory.task.tools, span.message, span.extra


def _without_tokens(span: Span) -> Span:
    gone = dict.fromkeys(("prompt_token_ids", "token_ids", "logprobs"))
    return span.model_copy(update={**gone, "capability": "eval-only", "capability_note": NOTE})
