"""Dialects: the APIs that clients of the gateway speak, translated to chat completions and back.

A dialect has no sockets: the gateway hands it the bodies of requests and answers, and the chunks of streams.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias

from r3agent.records.json_values import json_bytes

Body: TypeAlias = dict[str, Any]

CHARACTERS_PER_TOKEN = 4
"""Characters of JSON for a token in an estimate, as English text and code have."""


class Event(NamedTuple):
    """Event of a stream."""

    name: str | None
    """Name of the event; chat completions have none."""
    data: Mapping[str, Any] | str

    @property
    def wire(self) -> bytes:
        """Bytes of the event in a `text/event-stream`."""
        data = self.data.encode() if isinstance(self.data, str) else json_bytes(self.data)
        return (b"" if self.name is None else b"event: %s\n" % self.name.encode()) + b"data: %s\n\n" % data


class EventStream(Protocol):
    """Translation of one streamed answer."""

    def take(self, chunk: Mapping[str, Any]) -> Iterator[Event]:
        """Translate a chunk of a chat completion, e.g. with content, the finish reason or the usage."""
        ...

    def end(self) -> Iterator[Event]:
        """Close the stream after the last chunk; one without a finish reason has failed."""
        ...

    def fail(self, status: int, message: str, kind: str | None = None) -> Iterator[Event]:
        """Close the stream with an error, e.g. because the upstream broke off; arguments as for `Dialect.error`."""
        ...


class Dialect(Protocol):
    """API that a client speaks."""

    def to_chat(self, body: Mapping[str, Any]) -> Body:
        """Translate a request into one of chat completions, or of /tokenize; a streamed one asks for its usage.

        Raises:
            ArgumentError: it is malformed, or chat completions cannot express it.
        """
        ...

    def from_chat(self, answer: Mapping[str, Any], request: Mapping[str, Any]) -> Body:
        """Translate the whole answer to `request`, the client's own body.

        Raises:
            ProtocolError: it is not a chat completion.
        """
        ...

    def stream(self, request: Mapping[str, Any]) -> EventStream:
        """Begin the translation of the streamed answer to `request`, the client's own body."""
        ...

    def error(self, status: int, message: str, kind: str | None = None) -> Body:
        """Make the body of an error response.

        Args:
            kind: OpenAI's type of the error, e.g. of the upstream's error; default: that of the status.
        """
        ...

    def count(self, tokens: int, *, is_estimate: bool = False) -> Body:
        """Make the answer to a request for the number of tokens of a prompt."""
        ...


def error_kind(status: int) -> str:
    """Return OpenAI's type of an error with this status."""
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    return kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")


def openai_error(status: int, message: str, kind: str | None = None) -> Body:
    """Make the body of an error response of OpenAI's APIs."""
    return {"error": {"message": message, "type": kind or error_kind(status), "param": None, "code": None}}


class ChatApi:
    """Chat completions: requests and answers stay as they are."""

    def to_chat(self, body: Mapping[str, Any]) -> Body:
        return dict(body)

    def from_chat(self, answer: Mapping[str, Any], request: Mapping[str, Any]) -> Body:
        return dict(answer)

    def stream(self, request: Mapping[str, Any]) -> EventStream:
        return _ChatStream()

    def error(self, status: int, message: str, kind: str | None = None) -> Body:
        return openai_error(status, message, kind)

    def count(self, tokens: int, *, is_estimate: bool = False) -> Body:
        return {"count": tokens, **({"estimated": True} if is_estimate else {})}


class _ChatStream:
    def take(self, chunk: Mapping[str, Any]) -> Iterator[Event]:
        yield Event(None, chunk)

    def end(self) -> Iterator[Event]:
        yield Event(None, "[DONE]")

    def fail(self, status: int, message: str, kind: str | None = None) -> Iterator[Event]:
        yield Event(None, openai_error(status, message, kind))
        yield from self.end()


def tokenize_request(chat: Mapping[str, Any]) -> Body:
    """Make the body of vLLM's `POST /tokenize`, whose answer has the `count`, of a chat completion's request."""
    fields = ("model", "messages", "tools", "chat_template_kwargs", "add_generation_prompt", "continue_final_message")
    return {field: chat[field] for field in fields if chat.get(field) is not None}


def estimate_tokens(chat: Mapping[str, Any]) -> int:
    """Estimate the tokens of a prompt by its length, for upstreams without `/tokenize`."""
    return len(json.dumps([chat.get("messages"), chat.get("tools")], ensure_ascii=False)) // CHARACTERS_PER_TOKEN
