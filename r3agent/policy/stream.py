"""Assemble a streamed chat completion into the body of a response without streaming."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from r3agent.http.events import parse_json, read_events
from r3agent.policy.deltas import add_calls, add_content, add_fields
from r3agent.records.json_values import well_formed
from r3agent.records.reply import text_of

OnDelta: TypeAlias = Callable[[int, str], object]
"""Callback for each text delta of a streamed completion, without thinking; takes the choice index and the text."""

HALF = re.compile("[\ud800-\udbff]$")
"""First half of a surrogate pair at the end of a delta; the second is in the next one."""


def shift_choices(on_delta: OnDelta, by: int) -> OnDelta:
    """Add `by` to the choice indices of a further request."""
    return lambda index, text: on_delta(index + by, text)


class Assembly:
    """Body of a completion, assembled from its chunks in order.

    A chunk may lack choices, as that of the usage or a ping; a choice may lack its index, or have a whole `message` in
    place of a `delta`, as in a response without streaming.
    """

    def __init__(self, on_delta: OnDelta | None = None) -> None:
        self._on_delta = on_delta
        self._head: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._halves: dict[int, str] = {}
        self._in_messages: set[int] = set()
        """Choices whose deltas are called `message`."""
        self._first: Any = None

    def add(self, chunk: Any) -> Iterator[tuple[int, str]]:
        """Add one chunk, and yield the choice index and text of each delta in it.

        Raises:
            KeyError, TypeError, AttributeError, ValueError, OverflowError: it is not a chunk of a chat completion.
        """
        if chunk in (None, "", "[DONE]"):
            return
        self._first = chunk if self._first is None else self._first
        if not isinstance(chunk, Mapping):
            raise TypeError(f"an event is {json.dumps(chunk)[:80]}")
        parts: Any = [part for part in chunk.get("choices") or () if part is not None]
        usages = [(chunk.get("x_groq") or {}).get("usage"), *(part.get("usage") for part in parts), chunk.get("usage")]
        for usage in filter(None, usages):  # Groq and Moonshot have it elsewhere
            self._head["usage"] = usage
        for field in ("model", "prompt_token_ids"):
            if chunk.get(field) is not None:
                self._head[field] = chunk[field]
        for place, part in enumerate(parts):
            index = int(place if part.get("index") is None else part["index"])
            if text := self._take_choice(index, part):
                yield index, text

    def _take_choice(self, index: int, part: Mapping[str, Any]) -> str:
        """Add one choice of a chunk, and return its text."""
        choice = self._choices.setdefault(index, {"index": index, "message": {"content": ""}})
        message, whole = choice["message"], part.get("message") if not part.get("delta") else None
        if whole and part.get("finish_reason") and index not in self._in_messages:
            text = _take_whole(message, whole)
        else:
            delta: Any = part.get("delta") or whole or part.get("text") or {}
            delta = {"content": delta} if isinstance(delta, str) else delta
            self._in_messages |= {index} if whole else set()
            text = text_of(delta.get("content")) or text_of(delta.get("refusal"))
            message["content"] = add_content(message["content"], delta.get("content"))
            add_fields(message, {key: value for key, value in delta.items() if key not in ("content", "tool_calls")})
            if calls := delta.get("tool_calls"):
                add_calls(message.setdefault("tool_calls", []), calls)
        if part.get("token_ids"):
            choice.setdefault("token_ids", []).extend(part["token_ids"])
        if isinstance(logprobs := part.get("logprobs"), Mapping):
            add_fields(choice.setdefault("logprobs", {}), logprobs)
        if part.get("finish_reason"):
            choice["finish_reason"] = part["finish_reason"]
        return self._whole_characters(index, text)

    def _whole_characters(self, index: int, text: str) -> str:
        """Keep the first half of a surrogate pair back until the second comes."""
        text = self._halves.pop(index, "") + text
        if HALF.search(text):
            self._halves[index], text = text[-1], text[:-1]
        return well_formed(text)

    def take(self, chunk: Any) -> None:
        """Add one chunk, and call back for each piece of text; raises as `add`."""
        for index, text in self.add(chunk):
            if self._on_delta is not None:
                self._on_delta(index, text)

    @property
    def is_broken_off(self) -> bool:
        """Return True if nothing came, or a choice has begun and has no finish reason."""
        return self._first is None or any(not choice.get("finish_reason") for choice in self._choices.values())

    @property
    def beginning(self) -> str:
        """JSON of the first event, for messages."""
        return "" if self._first is None else json.dumps(self._first)

    @property
    def body(self) -> dict[str, Any]:
        """Body assembled from the chunks so far."""
        return {**self._head, "choices": [self._choices[index] for index in sorted(self._choices)]}


def _take_whole(message: dict[str, Any], whole: Mapping[str, Any]) -> str:
    """Take a whole message, which may end a stream of its deltas, and return what of its text is new."""
    before, text = text_of(message["content"]), text_of(whole.get("content"))
    message |= {key: value for key, value in whole.items() if value and (key != "content" or text.startswith(before))}
    return text[len(before) :] if text.startswith(before) else ""


def read_body(content: bytes, parsed: Any = None) -> Any:
    """Read the body of a response without streaming; some servers send events, or a list of one, all the same.

    Args:
        parsed: the content as a value, if it is JSON and has been parsed.

    Raises:
        KeyError, TypeError, AttributeError, ValueError: it is not JSON, nor a stream that came to its end.
    """
    if not content.lstrip().startswith((b"data:", b"event:", b":")):
        body = parse_json(content) if parsed is None else parsed
        return body[0] if isinstance(body, list) and len(body) == 1 else body
    assembly = Assembly()
    for event in read_events(content):
        assembly.take(event)
    if assembly.is_broken_off:
        raise ValueError("a stream without a finish reason")
    return assembly.body
