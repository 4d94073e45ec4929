"""The thinking of a model: what it writes before its answer, and where endpoints put it.

A server with a reasoning parser hands it over beside the content, under one of `FIELDS`; without one it is the first
part of the content. It stays in the recorded tokens either way. Where it was handed over it goes back in the same
field of the assistant message: the model's own chat template decides how much of it the model sees again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

ReasoningField: TypeAlias = Literal["reasoning", "reasoning_content"]
FIELDS: tuple[ReasoningField, ...] = ("reasoning", "reasoning_content")
"""Names of the field: vLLM's, and its earlier one, which others still use."""

OPEN, CLOSE = "<think>", "</think>"


class Thought(NamedTuple):
    """A text in two parts."""

    thinking: str
    answer: str


def split_thinking(text: str) -> Thought:
    """A leading `<think>…</think>` and what follows it; what is not closed is thinking to its end.

    Templates that open it in the prompt leave `…</think>` of it, so that nothing opens what is closed.
    """
    head, closed, answer = text.partition(CLOSE)
    opened = head.lstrip().startswith(OPEN)
    if not opened and (not closed or OPEN in head):
        return Thought("", text)
    return Thought(head.lstrip().removeprefix(OPEN).strip(), answer.lstrip("\n"))


def find_reasoning(message: Mapping[str, Any]) -> tuple[ReasoningField, str] | None:
    """The thinking beside a message's content, with the name of its field."""
    return next(((field, message[field]) for field in FIELDS if message.get(field)), None)


def fill_reasoning_fields(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message for a chat template, which knows one name or the other; vLLM does the same."""
    found = find_reasoning(message)
    return {**message, **(dict.fromkeys(FIELDS, found[1]) if found else {})}
