"""Chat messages, built from the history that a client of another API sends back.

The history of one turn begins with that of the turn before, message by message, so that the record can continue it:
the ids of calls, the order and the thinking are kept, and nothing depends on what comes after.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from r3agent._util.messages import shorten
from r3agent.errors import ArgumentError
from r3agent.gateway.dialect import Body

TEXTS = ("text", "input_text", "output_text", "refusal")
"""Types of parts that are text."""

REMINDER = "<system-reminder>\n{}\n</system-reminder>"
"""Form of instructions in the middle of a conversation; coding agents use it too."""

BLANK_SCHEMA: Body = {"type": "object", "properties": {}}
"""Parameters of a tool that declares none."""

SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("logit_bias", "chat_template_kwargs"),
)
"""Fields that requests share with chat completions; servers accept those of others' APIs too."""


class History:
    """Messages so far."""

    def __init__(self) -> None:
        self._messages: list[Body] = []
        self._images: list[Body] = []
        """Images of tool results, which only a user's message may have."""

    def system(self, text: str) -> None:
        """Add instructions; those at the beginning become one message, and later ones are of the user's.

        Many chat templates take one system message, and only as the first.
        """
        if not text:
            return
        if not self._messages:
            self._messages.append({"role": "system", "content": text})
        elif self.role == "system":
            self._messages[0]["content"] += f"\n\n{text}"
        else:
            self.user([{"type": "text", "text": REMINDER.format(text)}])

    def user(self, parts: list[Body]) -> None:
        """Add to the user's message at the end, or begin one; some chat templates do not take two in a row."""
        parts, self._images = [*self._images, *parts], []
        if self.role == "user":
            parts = [*parts_of(self._messages.pop()["content"], ""), *parts]
        is_text = len(parts) == 1 and parts[0]["type"] == "text"
        self._messages.append({"role": "user", "content": parts[0]["text"] if is_text else parts or ""})

    def assistant(self, *, anew: bool = False, thinking: str = "", text: str = "", call: Body | None = None) -> None:
        """Add to the assistant's message at the end, or begin another one."""
        self._show_images()
        if anew or not self._messages or self._messages[-1]["role"] != "assistant":
            self._messages.append({"role": "assistant", "content": ""})
        message = self._messages[-1]
        message["content"] += text
        if thinking:
            message["reasoning_content"] = message.get("reasoning_content", "") + thinking
        if call is not None:
            message.setdefault("tool_calls", []).append(call)

    def result(self, call_id: Any, parts: list[Body], where: str) -> None:
        """Add the result of a tool call; its images follow in a user's message."""
        if not isinstance(call_id, str) or not call_id:
            raise ArgumentError(f"{where} = {shorten(call_id)}: must be the id of the call that this is the result of")
        texts = [part["text"] for part in parts if part["type"] == "text"]
        self._images += [part for part in parts if part["type"] != "text"]
        self._messages.append({"role": "tool", "tool_call_id": call_id, "content": "\n".join(texts)})

    @property
    def role(self) -> str | None:
        """Role of the last message."""
        return self._messages[-1]["role"] if self._messages else None

    def end(self) -> list[Body]:
        """Return the messages."""
        self._show_images()
        return self._messages

    def _show_images(self) -> None:
        if self._images:
            self.user([])


def tool_call(call_id: Any, name: Any, arguments: str, where: str) -> Body:
    """Make a tool call of an assistant's message."""
    for field, value in (("id", call_id), ("name", name)):
        if not isinstance(value, str) or not value:
            raise ArgumentError(f"{where}: a call needs its {field}, and has {shorten(value)}")
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def function_tool(name: Any, tool: Mapping[str, Any], parameters: Any, where: str) -> Body:
    """Make a function of chat completions from another API's tool."""
    if not isinstance(name, str) or not name:
        raise ArgumentError(f"{where}.name = {shorten(name)}: a tool needs a name")
    if not isinstance(parameters, Mapping):
        raise ArgumentError(f"{where}: the parameters must be a JSON schema, and are {shorten(parameters)}")
    optional = {field: tool[field] for field in ("description", "strict") if tool.get(field) is not None}
    return {"type": "function", "function": {"name": name, **optional, "parameters": dict(parameters)}}


def objects(value: Any, where: str) -> list[Mapping[str, Any]]:
    """Check a list of objects; none is an empty one."""
    if value is None:
        return []
    if not isinstance(value, list | tuple) or not all(isinstance(item, Mapping) for item in value):
        raise ArgumentError(f"{where} = {shorten(value)}: must be a list of objects")
    return list(value)


def mapping(value: Any, where: str) -> Mapping[str, Any]:
    """Check an object; none is an empty one."""
    if value is None or isinstance(value, Mapping):
        return value or {}
    raise ArgumentError(f"{where} = {shorten(value)}: must be an object")


def parts_of(content: Any, where: str) -> list[Body]:
    """Read a content, a text or a list of parts, as parts of text and images.

    Raises:
        ArgumentError: a part is of another type, e.g. audio, a file, or the result of a hosted tool.
    """
    if content is None or isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    read = (read_part(part, f"{where}[{place}]") for place, part in enumerate(objects(content, where)))
    return [part for parts in read for part in parts]


def as_text(parts: list[Body], where: str, *, between: str = "") -> str:
    """Return parts that are only text as one text."""
    if any(part["type"] != "text" for part in parts):
        raise ArgumentError(f"{where}: has an image; here chat completions take only text")
    return between.join(part["text"] for part in parts)


def only(fields: Mapping[str, Any], names: Iterable[str]) -> Body:
    """Return the fields with these names that have a value."""
    return {name: fields[name] for name in names if fields.get(name) is not None}


def read_part(part: Mapping[str, Any], where: str) -> list[Body]:
    """Read one part; a document has several, and an empty text none."""
    kind = part.get("type", "text")
    if kind in TEXTS:
        text = part.get("text", part.get("refusal"))
        if not isinstance(text, str):
            raise ArgumentError(f"{where}.text = {shorten(text)}: must be a text")
        return [{"type": "text", "text": text}] if text else []
    if kind == "input_image" and part.get("image_url"):
        return [{"type": "image_url", "image_url": {"url": part["image_url"], **only(part, ["detail"])}}]
    if kind == "image_url":
        return [dict(part)]
    source = mapping(part.get("source"), f"{where}.source")
    if kind == "image" and source.get("type") == "url":
        return [{"type": "image_url", "image_url": {"url": source.get("url")}}]
    if kind == "image" and source.get("type") == "base64":
        url = f"data:{source.get('media_type') or 'image/png'};base64,{source.get('data')}"
        return [{"type": "image_url", "image_url": {"url": url}}]
    if kind == "document" and source.get("type") in ("text", "content"):
        return parts_of(source.get("data", source.get("content")), f"{where}.source")
    if kind == "search_result":
        head = {"type": "text", "text": f"{part.get('title', '')}\n{part.get('source', '')}"}
        return [head, *parts_of(part.get("content"), f"{where}.content")]
    stored = ": the image is a stored file, which the gateway does not have" if "image" in str(kind) else ""
    raise ArgumentError(
        f"{where}: a part of type {shorten(kind)}{stored}; chat completions take text and images with a URL or data"
    )


def is_json_object(text: str) -> bool:
    """Return True if a text is a JSON object, as the arguments of a call must be."""
    try:
        return isinstance(json.loads(text, parse_constant=_refuse), dict)
    except (ValueError, RecursionError):
        return False


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
