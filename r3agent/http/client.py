"""HTTP clients of servers: key, headers, timeouts, connections and proxies of all of them, and their async requests.

A request is sent once here; `r3agent.http.retry` decides what is tried again.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

from r3agent.errors import ConfigError
from r3agent.http.errors import read_error, read_error_event

CONNECT_TIMEOUT_S = 10.0

NO_KEY = "EMPTY"
"""Key for servers that need none, as vLLM's examples have it."""

HEADER_VARIABLES = {"OpenAI-Organization": "OPENAI_ORG_ID", "OpenAI-Project": "OPENAI_PROJECT_ID"}
"""Header to the environment variable that has its value, as for OpenAI's own clients."""


@dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """Settings of an HTTP client, sync or async.

    Raises:
        ConfigError: no HTTP header can carry the key.
    """

    timeout_s: float
    """Timeout of one request; connecting gets at most `CONNECT_TIMEOUT_S` of it."""
    api_key: str | None = None
    """Bearer token that is sent with every request."""
    max_connections: int = 100
    trust_env: bool = True
    """Use the proxies that the environment names; servers of this machine are not behind them."""

    def __post_init__(self) -> None:
        if self.api_key and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise ConfigError("the API key has characters that no HTTP header can carry; was it copied whole?")

    def open(self) -> httpx.Client:
        return httpx.Client(**self._arguments())

    def open_async(self) -> httpx.AsyncClient:
        """Open a client for one event loop."""
        return httpx.AsyncClient(**self._arguments())

    def _arguments(self) -> dict[str, Any]:
        headers = {"Accept": "application/json", "User-Agent": "r3agent"}
        headers |= {name: os.environ[v] for name, v in HEADER_VARIABLES.items() if os.environ.get(v)}
        headers |= {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        most = self.max_connections
        return {
            "headers": headers,
            "timeout": httpx.Timeout(self.timeout_s, connect=min(CONNECT_TIMEOUT_S, self.timeout_s)),
            "limits": httpx.Limits(max_connections=most, max_keepalive_connections=most),
            "trust_env": self.trust_env,
        }


async def send(
    client: httpx.AsyncClient,
    method: str,
    url: httpx.URL,
    body: Any = None,
    *,
    stream: bool = False,
    follow_redirects: bool = False,
) -> httpx.Response:
    """Send one request and return the response, whatever its status.

    Args:
        stream: leave the content unread; the caller closes the response.

    Raises:
        httpx.RequestError: no answer came.
    """
    request = client.build_request(method, url, json=body)
    try:
        return await client.send(request, stream=stream, follow_redirects=follow_redirects)
    except (ValueError, OSError) as error:  # a host name that cannot be encoded is a ValueError
        raise httpx.ConnectError(str(error), request=request) from error


async def fetch(client: httpx.AsyncClient, method: str, url: httpx.URL, body: Any = None) -> bytes:
    """Send one request and return the content of its response.

    Raises:
        ServerError: the server refused it.
        httpx.RequestError: no answer came.
    """
    response = await send(client, method, url, body, follow_redirects=True)
    if not response.is_success:
        raise read_error(response)
    return response.content


async def stream(client: httpx.AsyncClient, url: httpx.URL, body: dict[str, Any], take: Callable[[Any], None]) -> None:
    """Post one request for a stream and hand each event of the response, parsed, to `take`.

    Raises:
        ServerError: the server refused it, or sent an error as an event.
        httpx.RequestError: no answer came, or the stream broke off.
        ValueError: an event is not JSON.
    """
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    response = await send(client, "POST", url, body, stream=True, follow_redirects=True)
    try:
        if not response.is_success:
            await response.aread()
            raise read_error(response)
        async for data in _event_data(response):
            if data == b"[DONE]":
                continue  # the connection is used again only if the response is read to its end
            event = orjson.loads(data)
            if error := read_error_event(event, response):
                raise error
            take(event)
    finally:
        await response.aclose()


async def _event_data(response: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the data of each event, which is one line.

    `aiter_lines` would also split at the line separators of Unicode, which JSON strings may contain.
    """
    rest = b""
    async for content in response.aiter_bytes():
        *lines, rest = (rest + content).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line.removeprefix(b"data:").strip()
