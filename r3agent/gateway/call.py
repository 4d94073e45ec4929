"""One call that a gateway relays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from aiohttp import web

from r3agent.errors import PolicyError
from r3agent.gateway.dialect import ChatApi, Dialect, EventStream
from r3agent.gateway.upstream import KEYS, MIN_SECRET, Target, bare_key
from r3agent.http.errors import ServerError
from r3agent.recording.exchange import Exchange


@dataclass
class Call:
    """A call that is relayed."""

    request: web.Request
    exchange: Exchange
    target: Target
    dialect: Dialect
    body: Mapping[str, Any]
    """Request as the client sent it, in its dialect."""
    extra: Mapping[str, str]
    """Headers of the response that are the gateway's own."""
    out: web.StreamResponse | None = None
    """Stream to the client, once it has begun."""
    failure: str = ""
    """Reason why there is no answer."""
    failed: PolicyError | None = None
    """The same for the record; `None` if the answer, or a part of it, is recorded."""
    cause: ServerError | None = None
    """Error response of the upstream."""

    @property
    def is_translated(self) -> bool:
        return not isinstance(self.dialect, ChatApi)

    def redact(self, text: str) -> str:
        """Remove the keys of the request, which the upstream may quote, from a text for the record."""
        for key in (bare_key(self.request.headers.get(name, "")) for name in KEYS):
            text = text.replace(key, "[the client's key]") if len(key) >= MIN_SECRET else text
        return self.target.redact(text.encode(errors="replace")).decode()

    @cached_property
    def events(self) -> EventStream:
        """Translation of the stream to the client; it goes on where a request is sent again."""
        return self.dialect.stream(self.body)
