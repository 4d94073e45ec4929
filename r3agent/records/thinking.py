"""Thinking of a model: the text before its answer, and where endpoints return it.

A server with a reasoning parser returns the thinking in a separate field, one of `FIELDS`; without one it is the first
part of the content. The recorded tokens contain it in both cases. Thinking from a separate field is sent back in the
same field of the assistant message: the model's chat template decides how much of it the model sees again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

ReasoningField: TypeAlias = Literal["reasoning", "reasoning_content"]
FIELDS: tuple[ReasoningField, ...] = ("reasoning", "reasoning_content")
"""Names of the field: vLLM's current one, and its older one, which other servers still use."""

OPEN, CLOSE = "<think>", "</think>"


class Thought(NamedTuple):
    """A text, split into thinking and answer."""

    thinking: str
    answer: str


def split_thinking(text: str) -> Thought:
    """Split a leading `<think>…</think>` from the text after it; an unclosed block is all thinking.

    A template that opens the block in the prompt leaves only `…</think>` in the text, without the opening tag.
    """
    head, closed, answer = text.partition(CLOSE)
    opened = head.lstrip().startswith(OPEN)
    if not opened and (not closed or OPEN in head):
        return Thought("", text)
    return Thought(head.lstrip().removeprefix(OPEN).strip(), answer.lstrip("\n"))


def find_reasoning(message: Mapping[str, Any]) -> tuple[ReasoningField, str] | None:
    """Find the thinking in a separate field of a message; return the name of the field and the text."""
    return next(((field, message[field]) for field in FIELDS if message.get(field)), None)


def fill_reasoning_fields(message: Mapping[str, Any]) -> dict[str, Any]:
    """Copy the thinking to all `FIELDS`, because a chat template may use either name; vLLM does the same."""
    found = find_reasoning(message)
    return {**message, **(dict.fromkeys(FIELDS, found[1]) if found else {})}
