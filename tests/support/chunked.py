"""Chat completions of one message, whole and in small chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]

USAGE = {"prompt_tokens": 20, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 16}}


def call(id_: str, name: str, arguments: str) -> Json:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def completion(message: Json, finish_reason: str | None = None, **choice: Any) -> Json:
    finish_reason = finish_reason or ("tool_calls" if message.get("tool_calls") else "stop")
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason, **choice}
    return {"id": "chatcmpl-1", "model": "served", "choices": [choice], "usage": USAGE}


def chunked(whole: Json, size: int = 4) -> Iterator[Json]:
    """Split a completion: thinking, then the content, then the calls one after another, `size` characters at a time."""
    (choice,) = whole["choices"]
    message = choice["message"]
    yield _chunk({"role": "assistant", "content": ""})
    for field in ("reasoning_content", "reasoning", "content"):
        for piece in _pieces(message.get(field) or "", size):
            yield _chunk({field: piece})
    for index, each in enumerate(message.get("tool_calls") or ()):
        head = {**each, "index": index, "function": {"name": each["function"]["name"], "arguments": ""}}
        yield _chunk({"tool_calls": [head]})
        for piece in _pieces(each["function"]["arguments"], size):
            yield _chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    rest = {key: value for key, value in choice.items() if key not in ("index", "message")}
    yield {"model": "served", "choices": [{"index": 0, "delta": {}, **rest}]}
    yield {"model": "served", "choices": [], "usage": whole["usage"]}


def _chunk(delta: Json) -> Json:
    return {"model": "served", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


def _pieces(text: str, size: int) -> Iterator[str]:
    return (text[i : i + size] for i in range(0, len(text), size))
