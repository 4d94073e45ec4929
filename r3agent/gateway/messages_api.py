"""Anthropic's Messages API (`POST /v1/messages` and `/v1/messages/count_tokens`), which Claude Code and others speak.

Refused is what chat completions cannot express: tools that run on Anthropic's servers or are known to its models only,
their results, stored files, PDFs and MCP servers. A budget of thinking tokens is left to the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import uuid4

from r3agent._util.messages import shorten
from r3agent.errors import ArgumentError, ContextLengthError
from r3agent.gateway.dialect import Body, Event
from r3agent.gateway.history import (
    SAMPLING,
    History,
    as_text,
    function_tool,
    is_json_object,
    mapping,
    objects,
    only,
    parts_of,
    read_part,
    tool_call,
)
from r3agent.gateway.translation import Kind, Tokens, Translation
from r3agent.http.errors import text_refusal
from r3agent.records.reply import as_json

BILLING = "x-anthropic-billing-header"
"""Beginning of a part of Claude Code's system prompt that is another one in every request; vLLM leaves it out too."""

INVALID = "INVALID_JSON"
"""Key of the input of a call whose arguments are no JSON object, as in Anthropic's documentation; its value is them."""

SIGNATURE = "r3agent"
"""Signature of thinking: clients want one, and send it back."""

TOO_LONG = "prompt is too long"
"""Words of Anthropic's API by which clients know that they must shorten the conversation."""

CHOICES = {"auto": "auto", "any": "required", "none": "none"}

ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class MessagesApi:
    """Dialect of the Messages API."""

    def to_chat(self, body: Mapping[str, Any]) -> Body:
        for field in ("container", "mcp_servers"):
            if body.get(field):
                raise ArgumentError(f"{field} = {shorten(body[field])}: is of Anthropic's servers; leave it out")
        history = History()
        history.system(_system(body.get("system"), "system"))
        messages = objects(body.get("messages"), "messages")
        for place, message in enumerate(messages):
            _add(history, message, f"messages[{place}]")
        if not messages:
            raise ArgumentError("messages: is empty; send at least one message")
        chat: Body = {"messages": history.end(), **only(body, ("model", "max_tokens", *SAMPLING))}
        if messages[-1].get("role") == "assistant":  # the answer continues it
            chat |= {"continue_final_message": True, "add_generation_prompt": False}
        if body.get("stop_sequences"):
            chat["stop"] = body["stop_sequences"]
        if body.get("stream"):
            chat |= {"stream": True, "stream_options": {"include_usage": True}}
        return chat | _output(body) | _tools(body)

    def from_chat(self, answer: Mapping[str, Any], request: Mapping[str, Any]) -> Body:
        translation = self.stream(request)
        translation.take_whole(answer)
        return translation.message

    def stream(self, request: Mapping[str, Any]) -> MessageStream:
        return MessageStream(request)

    def error(self, status: int, message: str, kind: str | None = None) -> Body:
        if text_refusal(status, message) is ContextLengthError and TOO_LONG not in message:
            message = f"{TOO_LONG}: {message}"
        kind = ERRORS.get(status, "api_error" if status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": message}}

    def count(self, tokens: int, *, is_estimate: bool = False) -> Body:
        return {"input_tokens": tokens, **({"estimated": True} if is_estimate else {})}


# ---- the request ----


def _system(content: Any, where: str) -> str:
    """Return the text of instructions; its parts are joined as in vLLM."""
    parts = parts_of(content, where)
    return as_text([part for part in parts if not part.get("text", "").startswith(BILLING)], where)


def _add(history: History, message: Mapping[str, Any], where: str) -> None:
    """Add one message to the history."""
    role, content, at = message.get("role"), message.get("content"), f"{where}.content"
    if role == "system":
        history.system(_system(content, at))
        return
    if role not in ("user", "assistant"):
        raise ArgumentError(f"{where}.role = {shorten(role)}: must be user, assistant or system")
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else objects(content, at)
    if role == "assistant":
        history.assistant(anew=True)
        for place, block in enumerate(blocks):
            _add_block(history, block, f"{at}[{place}]")
        return
    parts: list[Body] = []
    for place, block in enumerate(blocks):
        if block.get("type") == "tool_result":
            _add_result(history, block, f"{at}[{place}]")
        else:
            parts += read_part(block, f"{at}[{place}]")
    if parts or all(block.get("type") != "tool_result" for block in blocks):
        history.user(parts)


def _add_block(history: History, block: Mapping[str, Any], where: str) -> None:
    """Add one block of an assistant's message."""
    match block.get("type"):
        case "thinking":
            history.assistant(thinking=str(block.get("thinking") or ""))
        case "redacted_thinking":  # Anthropic's own, which no other model can read
            pass
        case "tool_use":
            given = mapping(block.get("input"), f"{where}.input")
            is_text = list(given) == [INVALID] and isinstance(given[INVALID], str)
            arguments = given[INVALID] if is_text else json.dumps(given, ensure_ascii=False)
            history.assistant(call=tool_call(block.get("id"), block.get("name"), arguments, where))
        case _:
            history.assistant(text=as_text(read_part(block, where), where))


def _add_result(history: History, block: Mapping[str, Any], where: str) -> None:
    parts = parts_of(block.get("content"), f"{where}.content")
    texts = "\n".join(part["text"] for part in parts if part["type"] == "text")
    if block.get("is_error") and "error" not in texts[:80].lower():  # chat completions have no mark for it
        parts = [{"type": "text", "text": f"Error: {texts}"}, *(part for part in parts if part["type"] != "text")]
    history.result(block.get("tool_use_id"), parts, f"{where}.tool_use_id")


def _output(body: Mapping[str, Any]) -> Body:
    """Translate the form of the answer, and the effort of thinking."""
    output = mapping(body.get("output_config"), "output_config")
    chat = {"reasoning_effort": output["effort"]} if output.get("effort") is not None else {}
    if mapping(body.get("thinking"), "thinking").get("type") == "disabled":
        chat["reasoning_effort"] = "none"
    form = mapping(output.get("format") or body.get("output_format"), "output_config.format")
    if form:
        if form.get("type") != "json_schema" or not isinstance(form.get("schema"), Mapping):
            raise ArgumentError(f"output_config.format = {shorten(dict(form))}: must be json_schema with a schema")
        schema = {"name": "answer", "schema": form["schema"], "strict": True}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    return chat


def _tools(body: Mapping[str, Any]) -> Body:
    tools: list[Body] = []
    for place, tool in enumerate(objects(body.get("tools"), "tools")):
        if tool.get("type") not in (None, "custom"):
            raise ArgumentError(
                f"tools[{place}]: a tool of type {shorten(tool['type'])} runs on Anthropic's servers, or is known to "
                "its models only; declare it with an input_schema, and run it in the client"
            )
        tools.append(function_tool(tool.get("name"), tool, tool.get("input_schema"), f"tools[{place}]"))
    choice = mapping(body.get("tool_choice"), "tool_choice")
    kind, name = choice.get("type", "auto"), choice.get("name")
    names = [tool["function"]["name"] for tool in tools]
    if (kind not in (*CHOICES, "tool")) or (kind == "tool" and name not in names) or (kind == "any" and not tools):
        raise ArgumentError(
            f"tool_choice = {shorten(dict(choice))}: must be auto, any, none or one of the tools {names}"
        )
    if not tools:
        return {}
    chat: Body = {"tools": tools}
    if choice:
        chat["tool_choice"] = CHOICES.get(kind, {"type": "function", "function": {"name": name}})
    if choice.get("disable_parallel_tool_use"):
        chat["parallel_tool_calls"] = False
    return chat


# ---- the answer ----


class MessageStream(Translation):
    """Events of one message; `message` is its body so far."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        super().__init__()
        self._arguments = ""
        """Arguments of the open call, which are sent when they are known to be JSON."""
        self.message: Body = {
            "id": f"msg_{uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": request.get("model") or "",
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(None),
        }

    def fail(self, status: int, message: str, kind: str | None = None) -> Iterator[Event]:
        yield Event("error", MessagesApi().error(status, message, kind))

    def _event(self, type_: str, **fields: Any) -> Event:
        return Event(type_, {"type": type_, **fields})

    def _of_block(self, type_: str, **fields: Any) -> Event:
        return self._event(type_, index=len(self.message["content"]) - 1, **fields)

    def _begin(self) -> Iterator[Event]:
        self.message |= {"model": self.model or self.message["model"], "usage": _usage(self.tokens)}
        yield self._event("message_start", message=dict(self.message, content=[]))
        yield self._event("ping")

    def _open(self, kind: Kind, call: Body | None) -> Iterator[Event]:
        self._arguments = ""
        block: Body = {"type": "text", "text": ""}
        if kind == "thinking":
            block = {"type": "thinking", "thinking": "", "signature": ""}
        elif call is not None:
            block = {"type": "tool_use", "id": call["id"], "name": call["function"]["name"], "input": {}}
        self.message["content"].append(block)
        yield self._of_block("content_block_start", content_block=dict(block))

    def _add(self, text: str, logprobs: Sequence[Any]) -> Iterator[Event]:
        block = self.message["content"][-1]
        if block["type"] == "tool_use":
            self._arguments += text
            yield self._event("ping")  # clients give up a stream that is silent for long
            return
        field = block["type"]
        block[field] += text
        yield self._of_block("content_block_delta", delta={"type": f"{field}_delta", field: text})

    def _close(self) -> Iterator[Event]:
        block = self.message["content"][-1]
        if block["type"] == "thinking":
            block["signature"] = SIGNATURE
            yield self._of_block("content_block_delta", delta={"type": "signature_delta", "signature": SIGNATURE})
        elif block["type"] == "tool_use":
            text = as_json(self._arguments)
            text = text if is_json_object(text) else json.dumps({INVALID: text}, ensure_ascii=False)
            block["input"] = json.loads(text)
            yield self._of_block("content_block_delta", delta={"type": "input_json_delta", "partial_json": text})
        yield self._of_block("content_block_stop")

    def _finish(self) -> Iterator[Event]:
        stop = {"stop_reason": self._stop_reason, "stop_sequence": None}
        if stop["stop_reason"] == "stop_sequence":
            stop["stop_sequence"] = self.stop_string
        self.message |= {**stop, "usage": _usage(self.tokens)}
        yield self._event("message_delta", delta=stop, usage=self.message["usage"])
        yield self._event("message_stop")

    @property
    def _stop_reason(self) -> str:
        if self.finish_reason in ("length", "content_filter"):
            return "max_tokens" if self.finish_reason == "length" else "refusal"
        if self.has_called:
            return "tool_use"
        return "end_turn" if self.stop_string is None else "stop_sequence"


def _usage(tokens: Tokens | None) -> Body:
    """Translate the usage; Anthropic's input tokens are without those from the cache."""
    tokens = tokens or Tokens()
    return {
        "input_tokens": max(tokens.prompt - tokens.cached, 0),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": tokens.cached,
        "output_tokens": tokens.sampled,
    }
