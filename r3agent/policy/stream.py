"""Assemble a streamed chat completion into the body of a response without streaming."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from r3agent.records.thinking import find_reasoning

OnDelta: TypeAlias = Callable[[int, str], object]
"""Callback for each text delta of a streamed completion, without thinking; takes the choice index and the text."""


def shift_choices(on_delta: OnDelta, by: int) -> OnDelta:
    """Add `by` to the choice indices of a further request."""
    return lambda index, text: on_delta(index + by, text)


class Assembly:
    """Body of a completion, assembled from its chunks in order."""

    def __init__(self, on_delta: OnDelta | None = None) -> None:
        self._on_delta = on_delta
        self._head: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    def add(self, chunk: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
        """Add one chunk, and yield the choice index and text of each delta in it.

        Raises:
            KeyError, TypeError, AttributeError: it is not a chunk of a chat completion.
        """
        for field in ("model", "usage", "prompt_token_ids"):
            if chunk.get(field) is not None:
                self._head[field] = chunk[field]
        for part in chunk["choices"]:
            choice = self._choices.setdefault(part["index"], {"index": part["index"], "message": {"content": ""}})
            delta = part.get("delta") or {}
            if text := delta.get("content"):
                choice["message"]["content"] += text
                yield part["index"], text
            if reasoning := find_reasoning(delta):
                field, piece = reasoning
                choice["message"][field] = choice["message"].get(field, "") + piece
            for call in delta.get("tool_calls") or ():
                _add_call(choice["message"].setdefault("tool_calls", []), call)
            if part.get("token_ids"):
                choice.setdefault("token_ids", []).extend(part["token_ids"])
            if token_logprobs := (part.get("logprobs") or {}).get("content"):
                choice.setdefault("logprobs", {"content": []})["content"].extend(token_logprobs)
            if part.get("finish_reason"):
                choice["finish_reason"] = part["finish_reason"]

    def take(self, chunk: Mapping[str, Any]) -> None:
        """Add one chunk, and call back for each piece of text; raises as `add`."""
        for index, text in self.add(chunk):
            if self._on_delta is not None:
                self._on_delta(index, text)

    @property
    def body(self) -> dict[str, Any]:
        """Body assembled from the chunks so far."""
        return {**self._head, "choices": [self._choices[index] for index in sorted(self._choices)]}


def _add_call(calls: list[dict[str, Any]], part: Mapping[str, Any]) -> None:
    """Add a part of a tool call: the first part has the id and name, every part a piece of the arguments."""
    index = part.get("index", len(calls))
    while len(calls) <= index:
        calls.append({"id": None, "type": "function", "function": {"name": "", "arguments": ""}})
    call, function = calls[index], part.get("function") or {}
    call["id"] = part.get("id") or call["id"]
    for field in ("name", "arguments"):
        call["function"][field] += function.get(field) or ""
