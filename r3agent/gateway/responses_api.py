"""OpenAI's Responses API (`POST /v1/responses`), which Codex CLI and others speak.

Histories are sent in full, or continued by `previous_response_id`, or by references to items, as long as the gateway
remembers that response.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import uuid4

from r3agent._util.messages import shorten
from r3agent.errors import ArgumentError, ContextLengthError
from r3agent.gateway.dialect import Body, Event, error_kind, openai_error
from r3agent.gateway.history import objects, only
from r3agent.gateway.responses_input import (
    CUSTOM,
    Name,
    encode_thinking,
    kept_tools,
    read_request,
    response_of,
    tool_names,
    wants,
)
from r3agent.gateway.translation import Kind, Tokens, Translation
from r3agent.http.errors import text_refusal
from r3agent.records.json_values import json_bytes
from r3agent.records.reply import as_json

REFERENCE = "item_reference"

MEMORY_BYTES = 64 * 2**20
"""Maximum size of the remembered items; the oldest responses are forgotten first."""

ECHOED: Body = {
    **dict.fromkeys(("instructions", "max_output_tokens", "previous_response_id", "temperature", "top_p", "user")),
    "parallel_tool_calls": True,
    "reasoning": None,
    "store": True,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "truncation": "disabled",
    "metadata": {},
    "service_tier": "default",
    "prompt_cache_key": None,
    "background": False,
}
"""Fields of a request that its response repeats, with their defaults."""


class _Turn(NamedTuple):
    """One remembered turn."""

    previous: str | None
    items: bytes
    """JSON of the input and the output."""


class ResponsesApi:
    """Dialect of the Responses API.

    Args:
        memory_bytes: maximum size of the remembered items.
    """

    def __init__(self, *, memory_bytes: int = MEMORY_BYTES) -> None:
        self._limit, self._size = memory_bytes, 0
        self._turns: OrderedDict[str, _Turn] = OrderedDict()

    def to_chat(self, body: Mapping[str, Any]) -> Body:
        items = [*self._recall(body.get("previous_response_id")), *_items(body)]
        return read_request({**body, "input": [self._find(i) if i.get("type") == REFERENCE else i for i in items]})

    def from_chat(self, answer: Mapping[str, Any], request: Mapping[str, Any]) -> Body:
        translation = self.stream(request)
        translation.take_whole(answer)
        return translation.response

    def stream(self, request: Mapping[str, Any]) -> ResponseStream:
        return ResponseStream(request, self._remember)

    def error(self, status: int, message: str, kind: str | None = None) -> Body:
        body = openai_error(status, message, kind)
        if text_refusal(status, message) is ContextLengthError:
            body["error"]["code"] = "context_length_exceeded"
        return body

    def count(self, tokens: int, *, is_estimate: bool = False) -> Body:
        body: Body = {"object": "response.input_tokens", "input_tokens": tokens}
        return {**body, **({"estimated": True} if is_estimate else {})}

    def _remember(self, request: Mapping[str, Any], response: Body) -> None:
        """Remember a response, unless the request says that it must not be stored."""
        if request.get("store") is False:
            return
        items = json_bytes([*_items(request), *response["output"]])
        self._turns[response["id"]] = _Turn(request.get("previous_response_id"), items)
        self._size += len(items)
        while self._size > self._limit:
            _, forgotten = self._turns.popitem(last=False)
            self._size -= len(forgotten.items)

    def _recall(self, response_id: Any) -> list[Body]:
        """Return the items up to a response."""
        items: list[Body] = []
        while response_id:
            if (turn := self._turns.get(str(response_id))) is None:
                raise ArgumentError(
                    f"previous_response_id = {shorten(response_id)}: this gateway does not remember that response (or "
                    "one before it): it was not stored, is of another server, or too long ago; send the whole history "
                    "as `input`"
                )
            items, response_id = [*json.loads(turn.items), *items], turn.previous
        return items

    def _find(self, reference: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the remembered item with the id of a reference."""
        turn = self._turns.get(f"resp_{response_of(reference)}")
        for item in json.loads(turn.items) if turn else ():
            if item.get("id") == reference.get("id"):
                return item
        raise ArgumentError(
            f"item_reference {shorten(reference.get('id'))}: this gateway does not remember that item; send the item "
            "itself as `input`, e.g. with store=False"
        )


def _items(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    given = body.get("input")
    return [{"role": "user", "content": given}] if isinstance(given, str) else objects(given, "input")


class ResponseStream(Translation):
    """Events of one response; `response` is its body so far."""

    def __init__(self, request: Mapping[str, Any], remember: Callable[[Mapping[str, Any], Body], None]) -> None:
        super().__init__()
        self._request, self._remember = request, remember
        self._names = tool_names(request)
        self._id = uuid4().hex
        self._n_events = 0
        self._item: Body = {}
        """Open item."""
        self._text = ""
        """Text of the open item, or the arguments of its call."""
        self._logprobs: list[Any] = []
        echoed = {**ECHOED, **only(request, ECHOED)}
        self.response: Body = {
            "id": f"resp_{self._id}",
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "model": request.get("model") or "",
            "output": [],
            "usage": None,
            **echoed,
            "tools": kept_tools(request),
        }

    def fail(self, status: int, message: str, kind: str | None = None) -> Iterator[Event]:
        yield from self._ensure_begun()
        code = "rate_limit_exceeded" if status == 429 else "server_error"
        if text_refusal(status, message) is ContextLengthError:
            code = "context_length_exceeded"
        error = {"code": code, "message": message, "type": kind or error_kind(status)}
        yield self._end("failed", error=error)

    # ---- the events ----

    def _event(self, name: str, /, **fields: Any) -> Event:
        self._n_events += 1
        type_ = f"response.{name}"
        return Event(type_, {"type": type_, "sequence_number": self._n_events - 1, **fields})

    def _of_item(self, name: str, /, **fields: Any) -> Event:
        """Make an event of the open item."""
        return self._event(name, item_id=self._item["id"], output_index=len(self.response["output"]), **fields)

    def _item_event(self, name: str) -> Event:
        return self._event(f"output_item.{name}", output_index=len(self.response["output"]), item=dict(self._item))

    def _begin(self) -> Iterator[Event]:
        self.response["model"] = self.model or self.response["model"]
        yield self._event("created", response=dict(self.response, output=[]))
        yield self._event("in_progress", response=dict(self.response, output=[]))

    def _open(self, kind: Kind, call: Body | None) -> Iterator[Event]:
        self._text, self._logprobs = "", []
        begun = {"status": "in_progress"}
        if kind == "text":
            self._item = {"id": self._item_id("msg"), "type": "message", "role": "assistant", "content": [], **begun}
        elif kind == "thinking":
            self._item = {"id": self._item_id("rs"), "type": "reasoning", "summary": [], "content": [], **begun}
        elif call is not None:
            name = self._names.get(call["function"]["name"], Name(call["function"]["name"]))
            head, said = ("ctc", "custom_tool_call"), {"input": ""}
            if not name.is_custom:
                head, said = ("fc", "function_call"), {"arguments": "", **begun}
            named = {"name": name.name, **({"namespace": name.namespace} if name.namespace else {})}
            self._item = {"id": self._item_id(head[0]), "type": head[1], "call_id": call["id"], **named, **said}
        yield self._item_event("added")
        if kind != "call":
            yield self._of_item("content_part.added", content_index=0, part=self._part())

    def _add(self, text: str, logprobs: Sequence[Any]) -> Iterator[Event]:
        self._text += text
        match self._item["type"]:
            case "message":
                given = [_logprob(token) for token in logprobs] if wants(self._request, _LOGPROBS) else []
                self._logprobs += given
                yield self._of_item("output_text.delta", content_index=0, delta=text, logprobs=given)
            case "reasoning":
                yield self._of_item("reasoning_text.delta", content_index=0, delta=text)
            case "function_call":
                yield self._of_item("function_call_arguments.delta", delta=text)
            case _:  # the text of a custom tool is known when its JSON is whole
                pass

    def _close(self) -> Iterator[Event]:
        item = self._item
        match item["type"]:
            case "message":
                yield self._of_item("output_text.done", content_index=0, text=self._text, logprobs=self._logprobs)
            case "reasoning":
                yield self._of_item("reasoning_text.done", content_index=0, text=self._text)
                item["encrypted_content"] = encode_thinking(self._text)
            case "function_call":
                item["arguments"] = arguments = as_json(self._text)
                yield self._of_item("function_call_arguments.done", name=item["name"], arguments=arguments)
            case _:
                item["input"] = text = _custom_input(self._text)
                yield self._of_item("custom_tool_call_input.delta", delta=text)
                yield self._of_item("custom_tool_call_input.done", input=text)
        if "content" in item:
            yield self._of_item("content_part.done", content_index=0, part=self._part())
            item["content"] = [self._part()]
        if "status" in item:
            item["status"] = "incomplete" if self.finish_reason == "length" else "completed"
        yield self._item_event("done")
        self.response["output"].append(item)

    def _finish(self) -> Iterator[Event]:
        reasons = {"length": "max_output_tokens", "content_filter": "content_filter"}
        if reason := reasons.get(self.finish_reason or ""):
            yield self._end("incomplete", incomplete_details={"reason": reason})
        else:
            yield self._end("completed", completed_at=int(time.time()))
        self._remember(self._request, self.response)

    def _end(self, status: str, **fields: Any) -> Event:
        self.response |= {"status": status, "usage": _usage(self.tokens), **fields}
        return self._event(status, response=self.response)

    def _item_id(self, prefix: str) -> str:
        return f"{prefix}_{self._id}_{len(self.response['output'])}"

    def _part(self) -> Body:
        if self._item["type"] == "reasoning":
            return {"type": "reasoning_text", "text": self._text}
        return {"type": "output_text", "text": self._text, "annotations": [], "logprobs": self._logprobs}


_LOGPROBS = "message.output_text.logprobs"


def _logprob(token: Mapping[str, Any]) -> Body:
    """Return the logprob of a token, with the list of the alternatives in any case."""
    tops = [{"bytes": [], **top} for top in token.get("top_logprobs") or ()]
    return {"token": "", "bytes": [], **token, "top_logprobs": tops}


def _custom_input(arguments: str) -> str:
    """Return the text for a custom tool; arguments in another form are the text."""
    try:
        text = json.loads(arguments)[CUSTOM]
    except (ValueError, RecursionError, KeyError, TypeError):
        return arguments
    return text if isinstance(text, str) else arguments


def _usage(tokens: Tokens | None) -> Body | None:
    return tokens and {
        "input_tokens": tokens.prompt,
        "input_tokens_details": {"cached_tokens": tokens.cached, "cache_write_tokens": 0},
        "output_tokens": tokens.sampled,
        "output_tokens_details": {"reasoning_tokens": tokens.thinking},
        "total_tokens": tokens.prompt + tokens.sampled,
    }
