"""Requests of OpenAI's Responses API, translated to chat completions.

Refused is what chat completions cannot express: tools that run on OpenAI's servers and their results, conversations
and files that are stored there, prompts by id, work in the background, and audio.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from r3agent._util.messages import did_you_mean, shorten
from r3agent.errors import ArgumentError
from r3agent.gateway.dialect import Body
from r3agent.gateway.history import (
    BLANK_SCHEMA,
    SAMPLING,
    History,
    as_text,
    function_tool,
    mapping,
    objects,
    only,
    parts_of,
    tool_call,
)
from r3agent.records.reply import as_json

REFUSED = {
    "conversation": "send the whole history as `input`",
    "prompt": "send the text of the prompt as `instructions` and `input`",
    "background": "leave it out, and read the answer or its stream",
}
"""Fields that need OpenAI's storage, and their replacements."""

UNASKED = ("web_search", "web_search_preview", "image_generation", "tool_search")
"""Hosted tools that coding agents offer unasked; they are left out, as by vLLM and llama.cpp."""

OUTPUTS = ("function_call_output", "custom_tool_call_output")

CUSTOM = "input"
"""Name of the only parameter of the function that stands for a custom tool, as in vLLM."""

ENCODED = "r3agent:"
"""Beginning of an `encrypted_content` with the thinking, which is all that some clients send back of it."""


class Name(NamedTuple):
    """Name of a tool in the Responses API."""

    name: str
    namespace: str | None = None
    is_custom: bool = False


def read_request(body: Mapping[str, Any]) -> Body:
    """Translate a request.

    Raises:
        ArgumentError: it is malformed, or chat completions cannot express it.
    """
    for field, instead in REFUSED.items():
        if body.get(field):
            raise ArgumentError(f"{field} = {shorten(body[field])}: this gateway has no such storage; {instead}")
    chat: Body = {"messages": _messages(body), **only(body, ("model", *SAMPLING, "stop"))}
    if body.get("max_output_tokens") is not None:
        chat["max_tokens"] = body["max_output_tokens"]
    if body.get("stream"):
        chat |= {"stream": True, "stream_options": {"include_usage": True}}
    if (effort := mapping(body.get("reasoning"), "reasoning").get("effort")) is not None:
        chat["reasoning_effort"] = effort
    if wants(body, "message.output_text.logprobs"):
        chat |= {"logprobs": True, **only(body, ["top_logprobs"])}
    chat |= _response_format(mapping(mapping(body.get("text"), "text").get("format"), "text.format"))
    return chat | _tools(body)


def wants(body: Mapping[str, Any], what: str) -> bool:
    """Return True if a request's `include` has this name."""
    included = body.get("include")
    return isinstance(included, list) and what in included


def tool_names(body: Mapping[str, Any]) -> dict[str, Name]:
    """Map the names of a request's tools in chat completions to those in the Responses API."""
    return {tool["function"]["name"]: name for tool, name in _read_tools(objects(body.get("tools"), "tools"), "tools")}


def kept_tools(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return a request's tools without those that are left out."""
    return [tool for tool in objects(body.get("tools"), "tools") if tool.get("type") not in UNASKED]


# ---- the history ----


def _messages(body: Mapping[str, Any]) -> list[Body]:
    history = History()
    history.system(_text(body, "instructions", "instructions"))
    items = body.get("input")
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    turn = _Turn(history)
    for place, item in enumerate(objects(items, "input")):
        _add(turn, item, f"input[{place}]")
    messages = history.end()
    if not messages:
        raise ArgumentError("input: is empty; send a text or a list of items")
    return messages


class _Turn:
    """Assistant's message at the end of a history, of which a response's items are the parts.

    Items of this gateway carry the id of their response. Of others, and where the client drops the ids, a thinking
    after anything else and a text after a text begin the next response.
    """

    def __init__(self, history: History) -> None:
        self.history = history
        self._response: str | None = None
        self._last: str | None = None

    def add(self, kind: str, item: Mapping[str, Any], **parts: Any) -> None:
        response = response_of(item)
        follows = self.history.role == "assistant"
        if response is None or self._response is None:
            anew = follows and (kind == "thinking" or kind == self._last == "text")
        else:
            anew = response != self._response
        self.history.assistant(anew=anew, **parts)
        self._response, self._last = response, kind


def response_of(item: Mapping[str, Any]) -> str | None:
    """Return the part of an item's id that names its response, if the item is of this gateway."""
    parts = str(item.get("id")).split("_")
    return parts[1] if len(parts) == 3 and len(parts[1]) == 32 else None


def _add(turn: _Turn, item: Mapping[str, Any], where: str) -> None:
    """Add one item to the history."""
    kind, history = item.get("type") or ("message" if "role" in item else None), turn.history
    role = item.get("role")
    if kind == "message" and role in ("system", "developer"):
        history.system(_text(item, "content", f"{where}.content"))
    elif kind == "message" and role == "user":
        history.user(parts_of(item.get("content"), f"{where}.content"))
    elif kind == "message" and role == "assistant":
        turn.add("text", item, text=_text(item, "content", f"{where}.content", between=""))
    elif kind == "message":
        raise ArgumentError(f"{where}.role = {shorten(role)}: must be user, assistant, system or developer")
    elif kind == "reasoning":
        turn.add("thinking", item, thinking=_thinking(item, where))
    elif kind == "function_call":
        name = flat(item.get("name"), item.get("namespace"))
        turn.add("call", item, call=tool_call(item.get("call_id"), name, as_json(item.get("arguments")), where))
    elif kind == "custom_tool_call":
        arguments = json.dumps({CUSTOM: item.get("input") or ""}, ensure_ascii=False)
        name = flat(item.get("name"), item.get("namespace"))
        turn.add("call", item, call=tool_call(item.get("call_id"), name, arguments, where))
    elif kind in OUTPUTS:
        history.result(item.get("call_id"), parts_of(item.get("output"), f"{where}.output"), f"{where}.call_id")
    else:
        raise ArgumentError(
            f"{where}: an item of type {shorten(kind)} is of OpenAI's own tools or storage, which chat completions "
            "cannot express; send messages, reasoning, and calls of function and custom tools with their outputs"
        )


def _text(item: Mapping[str, Any], field: str, where: str, *, between: str = "\n\n") -> str:
    return as_text(parts_of(item.get(field), where), where, between=between)


def _thinking(item: Mapping[str, Any], where: str) -> str:
    """Return the thinking of an item: its text, or else its summary, or else what this gateway encoded."""
    for field in ("content", "summary"):
        texts = [part.get("text") for part in objects(item.get(field), f"{where}.{field}")]
        if any(texts):
            return "".join(text for text in texts if isinstance(text, str))
    encoded = item.get("encrypted_content")
    if isinstance(encoded, str) and encoded.startswith(ENCODED):
        try:
            return base64.b64decode(encoded.removeprefix(ENCODED), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise ArgumentError(f"{where}.encrypted_content: was changed; send it back as it came") from None
    return ""  # of another provider, whose key this gateway does not have


def encode_thinking(text: str) -> str:
    """Make the `encrypted_content` of thinking; it is opaque, and no secret."""
    return ENCODED + base64.b64encode(text.encode(errors="replace")).decode()


# ---- tools and the form of the answer ----


def flat(name: Any, namespace: Any) -> Any:
    """Return the name of a tool in chat completions, which have no namespaces; the form is vLLM's."""
    return f"{namespace}__{name}" if namespace else name


def _read_tools(
    tools: list[Mapping[str, Any]], where: str, namespace: str | None = None
) -> Iterator[tuple[Body, Name]]:
    for place, tool in enumerate(tools):
        kind, at = tool.get("type"), f"{where}[{place}]"
        name = Name(str(tool.get("name")), namespace, is_custom=kind == "custom")
        if kind == "namespace":
            yield from _read_tools(objects(tool.get("tools"), f"{at}.tools"), f"{at}.tools", name.name)
        elif kind == "function":
            parameters = tool.get("parameters") or BLANK_SCHEMA
            yield function_tool(flat(tool.get("name"), namespace), tool, parameters, at), name
        elif kind == "custom":
            yield _custom_tool(tool, namespace, at), name
        elif kind not in UNASKED:
            raise ArgumentError(
                f"{at}: a tool of type {shorten(kind)} runs on OpenAI's servers, or is known to OpenAI's models only; "
                "declare it as a function, and run it in the client"
            )


def _custom_tool(tool: Mapping[str, Any], namespace: str | None, where: str) -> Body:
    """Make the function, with one text as its parameter, that stands for a tool that takes a text."""
    grammar = mapping(tool.get("format"), f"{where}.format")
    syntax = f"It must match this {grammar.get('syntax')} grammar:\n{grammar.get('definition')}"
    described = {"type": "string", "description": syntax if grammar.get("definition") else "Text for this tool."}
    parameters = {"type": "object", "properties": {CUSTOM: described}, "required": [CUSTOM]}
    return function_tool(flat(tool.get("name"), namespace), {**tool, "strict": None}, parameters, where)


def _tools(body: Mapping[str, Any]) -> Body:
    """Translate the tools, and the choice among them."""
    read = list(_read_tools(objects(body.get("tools"), "tools"), "tools"))
    names = {name.name: tool["function"]["name"] for tool, name in read}
    names |= {tool: tool for tool in names.values()}
    choice = body.get("tool_choice")
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        allowed = [_find(tool, names) for tool in objects(choice.get("tools"), "tool_choice.tools")]
        read, choice = [(tool, name) for tool, name in read if tool["function"]["name"] in allowed], choice.get("mode")
    if isinstance(choice, Mapping):
        choice = {"type": "function", "function": {"name": _find(choice, names)}}
    elif choice not in (None, "auto", "none", "required"):
        raise ArgumentError(f"tool_choice = {shorten(choice)}: must be auto, none, required or a tool")
    if not read:
        if choice == "required":
            raise ArgumentError("tool_choice = 'required': there is no function or custom tool that could be called")
        return {}
    chosen = {"tool_choice": choice, "parallel_tool_calls": body.get("parallel_tool_calls")}
    return {"tools": [tool for tool, _ in read], **only(chosen, chosen)}


def _find(choice: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Return the name in chat completions of a chosen tool."""
    name = str(flat(choice.get("name"), choice.get("namespace")))
    if choice.get("type") not in ("function", "custom") or name not in names:
        known = did_you_mean(name, names) if names else "the request has no function or custom tool"
        raise ArgumentError(f"tool_choice = {shorten(dict(choice))}: no such function or custom tool; {known}")
    return names[name]


def _response_format(form: Mapping[str, Any]) -> Body:
    kind = form.get("type", "text")
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"response_format": {"type": "json_object"}}
    if kind != "json_schema" or not isinstance(form.get("schema"), Mapping):
        raise ArgumentError(f"text.format = {shorten(dict(form))}: must be text, json_object, or json_schema with one")
    schema = {"name": "answer", **only(form, ("name", "description", "schema", "strict"))}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}
