"""Assistant message in the forms that servers send, read into the one form that is recorded and sent back.

content      text; null, missing; a list of parts of text, refusal, thinking or anything else
thinking     in a field of its own, or in parts
tool calls   ids missing, empty, null, numbers or repeated; no type; arguments an object or null; `function_call`
other        `reasoning_details`, `extra_content`, `thinking_blocks`, ...: kept, because some servers want them back
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import uuid4

from r3agent.records.thinking import FIELDS, ReasoningField

NOT_SENT_BACK = {
    *("role", "content", "tool_calls", "function_call", "refusal", *FIELDS),
    *("annotations", "audio", "citations", "executed_tools", "prefix"),
}
"""Fields of an answer that are read here, or that only answers have: servers refuse them in a request."""

TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
CALL_PARTS = ("tool_use", "tool_call", "function_call")
"""Types of parts of a content: texts, and tool calls, which are in `tool_calls` too."""
TEXT_KEYS = ("text", "refusal", "content", "value")
THINKING_KEYS = ("thinking", "reasoning", "text", "summary", "content", "value")
THINKING_PARTS = ("thinking", "reasoning")

MORE = re.compile(r"^content$|think|reason")
"""Names of further fields with what the model sampled."""


class Reply(NamedTuple):
    """Content of an assistant message."""

    text: str
    reasoning: tuple[ReasoningField, str] | None
    tool_calls: tuple[dict[str, Any], ...]
    extra: dict[str, Any]
    """Further fields that go back to the server; `content` if it has parts that are not text."""

    @property
    def has_more(self) -> bool:
        """Return True if the model sampled more than the text and the calls: thinking, or parts that are not text."""
        return self.reasoning is not None or any(MORE.search(key) for key in self.extra)


def read_reply(message: Mapping[str, Any]) -> Reply:
    """Read an assistant message in any of the forms above."""
    content = message.get("content")
    extra = {key: value for key, value in message.items() if _says_something(value) and key not in NOT_SENT_BACK}
    if isinstance(content, list) and not all(_is_text(part) or part.get("type") in CALL_PARTS for part in content):
        extra["content"] = content
    calls = message.get("tool_calls") or ([message["function_call"]] if message.get("function_call") else ())
    thoughts: dict[ReasoningField, str] = {field: _spelled(message.get(field), THINKING_KEYS) for field in FIELDS}
    thoughts[FIELDS[0]] = thoughts[FIELDS[0]] or (_thoughts(content) if not any(thoughts.values()) else "")
    return Reply(
        text=text_of(content) or text_of(message.get("refusal")),
        reasoning=next(((field, text) for field, text in thoughts.items() if text), None),
        tool_calls=normal_calls(calls, salt=uuid4().hex) if calls else (),
        extra=extra,
    )


def text_of(content: Any) -> str:
    """Return the text of a content: a string, null, or a list of parts, of which those that are no text are left out.

    >>> text_of([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "4"}, "2"])
    '42'
    """
    return "".join(_spelled(part, TEXT_KEYS) for part in _parts(content) if _is_text(part))


def called(call: Mapping[str, Any]) -> str:
    """Return the name in a call or a definition, of a function or of a custom tool."""
    named: Any = call.get("function") or call.get("custom") or call
    return str(named.get("name") or "") if isinstance(named, Mapping) else ""


def arguments_of(call: Mapping[str, Any]) -> Any:
    """Return the arguments of a call of a function, or the input of a custom tool."""
    function: Mapping[str, Any] = call.get("function") or call.get("custom") or {}
    return function.get("arguments", function.get("input"))


def normal_calls(calls: Any, *, salt: str = "") -> tuple[dict[str, Any], ...]:
    """Return tool calls in the form that strict servers take: unique ids, a type, and arguments as JSON text.

    Arguments that are text, whatever it says, and fields that are not OpenAI's, such as `extra_content`, stay as they
    are. An id that is missing or repeated is replaced by a hash of 9 letters and digits, as Mistral wants them.

    Args:
        salt: text in the hash, so that the same call in another turn has another id.
    """
    ids: set[str] = set()
    normal: list[dict[str, Any]] = []
    for call in calls if isinstance(calls, list | tuple) else [calls]:
        if call is None:
            continue
        fields: dict[str, Any] = dict(call) if isinstance(call, Mapping) else {"arguments": call}
        id_ = str(fields.pop("id", None) or "")
        if not id_ or id_ in ids:
            id_ = sha256(json.dumps([salt, len(normal), fields], default=str).encode()).hexdigest()[:9]
        ids.add(id_)
        fields.pop("index", None)  # of a stream
        type_ = fields.pop("type", None)
        if type_ == "custom" and isinstance(fields.get("custom"), Mapping):  # OpenAI's tools that take a text
            normal.append({"id": id_, "type": "custom", **fields})
            continue
        function = fields.pop("function", None)
        if not isinstance(function, Mapping):  # some servers have no object around the two
            function = {key: fields.pop(key) for key in ("name", "arguments") if key in fields}
        name, arguments = function.get("name"), function.get("arguments")
        rest = {key: value for key, value in function.items() if key not in ("name", "arguments") and value is not None}
        called = {"name": str(name or ""), "arguments": as_json(arguments), **rest}
        rest = {key: value for key, value in fields.items() if value is not None}
        normal.append({"id": id_, "type": "function", "function": called, **rest})
    return tuple(normal)


def as_json(arguments: Any) -> str:
    """Return the arguments of a tool call as JSON text; none, and an empty text, are `{}`."""
    if isinstance(arguments, str):
        return arguments if arguments.strip() else "{}"
    return "{}" if arguments is None else json.dumps(arguments, ensure_ascii=False, default=str)


def _says_something(value: Any) -> bool:
    return any(map(_says_something, value.values())) if isinstance(value, Mapping) else bool(value)


def _parts(content: Any) -> list[Any]:
    if content is None:
        return []
    return content if isinstance(content, list) else [content]


def _is_text(part: Any) -> bool:
    """Return True for a part that is only text; one without a type is."""
    if not isinstance(part, Mapping):
        return True
    return (part.get("type") or "text") in TEXT_PARTS


def _thoughts(content: Any) -> str:
    """Return the thinking in the parts of a content: Mistral's have parts of their own, Anthropic's a text."""
    parts = (part for part in _parts(content) if isinstance(part, Mapping) and part.get("type") in THINKING_PARTS)
    return "".join(_spelled(part, THINKING_KEYS) for part in parts)


def _spelled(part: Any, keys: tuple[str, ...]) -> str:
    """Return the text of a part, or of the parts in it."""
    if part is None or isinstance(part, str):
        return part or ""
    if isinstance(part, list):
        return "".join(_spelled(inner, keys) for inner in part)
    if isinstance(part, Mapping) and (part.get("type") or any(key in part for key in keys)):
        return next((_spelled(part[key], keys) for key in keys if part.get(key)), "")
    return json.dumps(part, ensure_ascii=False)  # a number, or the object that a response_format asked for
