"""Requests to an OpenAI-compatible endpoint: pooled connections, retries, and errors mapped in one place."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import httpx

from r3agent.errors import ConfigError, EndpointError, PolicyError, RequestError, UnreachableError
from r3agent.http import client as http
from r3agent.http.errors import ServerError, no_answer, policy_error
from r3agent.http.retry import Retry
from r3agent.http.slots import Slots
from r3agent.http.urls import ApiURL, redact_url
from r3agent.policy.base import Access

T = TypeVar("T")


class Connection(NamedTuple):
    """Client of one event loop."""

    client: http.Client
    slots: Slots
    """Limit on concurrent requests; waiting in the HTTP pool instead would count towards the timeout."""


class Endpoint:
    """Client of an OpenAI-compatible endpoint, usable from several event loops; `OpenAIPolicy` documents the settings.

    Args:
        is_current: returns False once another server has replaced this one, so that retries are pointless.

    Raises:
        ConfigError: the URL is not an HTTP URL, or the key is not valid in a header.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str,
        concurrency: int,
        timeout_s: float,
        outage_s: float,
        max_tries: int,
        adaptive: bool = False,
        headers: Mapping[str, str] | None = None,
        proxy: str | None = None,
        verify: bool | str | ssl.SSLContext = True,
        http_client: httpx.AsyncClient | None = None,
        is_current: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        if http_client is not None and (proxy or verify is not True):
            raise ConfigError(
                f"{'proxy' if proxy else 'verify'} and http_client: a client has its own; leave one of them out"
            )
        self.base_url = base_url
        self._adaptive = adaptive
        self._url = ApiURL(base_url)
        self._settings = http.ClientSettings(
            timeout_s=timeout_s,
            api_key=api_key,
            headers=headers,
            max_connections=concurrency,
            proxy=proxy,
            verify=verify,
        )
        self._lent = None if http_client is None else self._settings.lent(http_client)
        self._retry = Retry(max_tries=max_tries, outage_s=outage_s, is_current=is_current)
        self.access = Access(proxy, self._settings.verify, http_client, timeout_s, max_tries, outage_s)
        self._connections: dict[asyncio.AbstractEventLoop, Connection] = {}

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every request, with the key."""
        return dict(self._settings.all_headers if self._lent is None else self._lent.headers)

    async def post(self, path: str, body: dict[str, Any], take: Callable[[http.Content], object]) -> float:
        """Post `body` and return the latency in seconds, without the wait for a free connection.

        Args:
            take: takes the content of the response; raises a `ValueError` if another try may give it whole.

        Raises:
            ValueError: the error of `take` after `max_tries`.
            EndpointError: the endpoint is unreachable, timed out or failed, after `max_tries`.
            AccessError: the key, the model or the URL is wrong.
            RequestError: this request was refused.
        """

        async def once(client: http.Client) -> None:
            take(await http.fetch(client, "POST", self._url.route(path), body))

        _, latency_s = await self._request(once, body.get("model"))
        return latency_s

    async def stream(
        self,
        path: str,
        body: dict[str, Any],
        begin: Callable[[], Callable[[Any], None]],
        may_repeat: Callable[[], bool],
        end: Callable[[], object],
    ) -> float:
        """Post `body`, consume the streamed response, and return the latency in seconds.

        Args:
            begin: called for each try; returns the function that takes each parsed chunk.
            may_repeat: returns False once a stream that breaks off must not be tried again.
            end: called at the end of the stream; raises an `EndpointError` if it is not whole.

        Raises:
            EndpointError, AccessError, RequestError, ValueError: as `post`.
        """

        async def once(client: http.Client) -> None:
            await http.stream(client, self._url.route(path), body, begin())
            end()

        _, latency_s = await self._request(once, body.get("model"), may_repeat)
        return latency_s

    async def weight_version(self) -> str | None:
        """Request the last deployed version from vLLM's /weight_info; `None` if the server does not report it.

        A server that is gone reports nothing either: an answer that it gave before is not lost.
        """

        async def once(client: http.Client) -> http.Content:
            return await http.fetch(client, "GET", self._url.server_route("/weight_info"))

        try:
            content, _ = await self._request(once, None, takes_slot=False)
            return content.parsed["weight_version"]
        except (PolicyError, ValueError, KeyError, TypeError):
            return None

    def room(self) -> int:
        """Return how many requests may be in flight at present."""
        return self._connection().slots.limit

    def redact(self, text: str) -> str:
        """Remove the key and other secrets of the requests from a text."""
        return self._settings.redact(text, self._url.route(""))

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        connection = self._connections.pop(asyncio.get_running_loop(), None)
        if connection is not None and not isinstance(connection.client, http.Lent):
            await connection.client.aclose()

    async def _request(
        self,
        once: Callable[[http.Client], Awaitable[T]],
        model: object,
        may_repeat: Callable[[], bool] = lambda: True,
        *,
        takes_slot: bool = True,
    ) -> tuple[T, float]:
        """Return the result of the first successful try and its duration in seconds."""
        client, slots = self._connection()
        timeout_s = self._settings.timeout_s
        limit_s = timeout_s + min(http.CONNECT_TIMEOUT_S, timeout_s)

        async def in_time() -> T:
            try:
                async with asyncio.timeout(limit_s):  # the client's own timeout begins anew with each byte
                    return await once(client)
            except TimeoutError as error:
                raise httpx.ReadTimeout("the answer does not end") from error

        n_tries = 0

        async def timed() -> tuple[T, float]:
            nonlocal n_tries
            n_tries += 1
            return await slots.run(in_time) if takes_slot else (await in_time(), 0.0)

        try:
            return await self._retry.run(timed, may_repeat)
        except (ServerError, httpx.RequestError) as error:
            raise self._policy_error(error, model, _tried(n_tries)) from None
        except (ValueError, EndpointError) as error:
            if n_tries > 1:
                error.args = (f"{error}{_tried(n_tries)}",)
            raise

    def _connection(self) -> Connection:
        loop = asyncio.get_running_loop()
        if loop not in self._connections:
            for closed in [each for each in self._connections if each.is_closed()]:
                del self._connections[closed]
            slots = Slots(self._settings.max_connections, adaptive=self._adaptive)
            self._connections[loop] = Connection(self._lent or self._settings.open_for(self._url.route("")), slots)
        return self._connections[loop]

    def _policy_error(self, error: ServerError | httpx.RequestError, model: object, tries: str) -> PolicyError:
        where = f"{redact_url(self.base_url)}, model {model!r}: "
        if isinstance(error, ServerError):
            return policy_error(error, where=where, tries=tries)
        timeout_s = self._settings.timeout_s
        if isinstance(error, httpx.ConnectTimeout):
            limit_s = min(http.CONNECT_TIMEOUT_S, timeout_s)
            return EndpointError(
                f"{where}no connection within {limit_s:g} s{tries}; is the server running, and does it accept as many "
                f"connections as are opened at once? lower concurrency = {self._settings.max_connections}"
            )
        if isinstance(error, httpx.TimeoutException):
            return EndpointError(f"{where}no answer within timeout_s = {timeout_s:g}{tries}; raise it or ask for less")
        if isinstance(error, httpx.LocalProtocolError):
            return RequestError(f"{where}the request cannot be sent: {no_answer(error, timeout_s)}")
        waited = f" (waited {self._retry.outage_s:g} s)" if self._retry.has_answered else tries
        kind = UnreachableError if isinstance(error, httpx.ConnectError) else EndpointError
        return kind(f"{where}{no_answer(error, timeout_s)}{waited}; is the server running?")


def _tried(n: int) -> str:
    return f" (tried {n} times)" if n > 1 else ""
