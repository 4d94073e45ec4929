"""Answers and chunks of the SDK, read without changing them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import openai
from openai.types.chat import ChatCompletionChunk

from r3agent.recording import wire
from r3agent.records.json_values import parse_json


def json_of_chunk(chunk: Any) -> Any:
    """Return the JSON of an event of the SDK."""
    return chunk.to_dict(mode="python", warnings=False)


def is_blank(chunk: ChatCompletionChunk) -> bool:
    """Return True if a chunk has no part of the answer, but e.g. the role with an empty text."""
    with suppress(Exception):  # a chunk of another class
        return wire.is_blank(json_of_chunk(chunk))
    return False


def is_whole(answer: Any) -> bool:
    """Return True if all choices of an answer have one of the usual finish reasons."""
    choices = getattr(answer, "choices", None)
    reasons = [getattr(choice, "finish_reason", None) for choice in choices] if isinstance(choices, list) else []
    return bool(reasons) and all(reason in wire.WHOLE for reason in reasons)


def json_of(answer: Any) -> Any:
    """Return the JSON of an SDK model, or of a raw response (`with_raw_response`)."""
    if isinstance(content := getattr(answer, "content", None), bytes):
        return parse_json(content)
    if not isinstance(answer, openai.BaseModel):
        raise TypeError(f"{type(answer).__name__} is read by the application; use with_raw_response")
    return answer.to_dict(mode="python", warnings=False)
