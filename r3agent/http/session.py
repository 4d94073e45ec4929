"""Direct connections to a server, on aiohttp: a quarter of httpx's CPU time for a request, at any number of them.

Responses are httpx's where they are read as errors, and so are the exceptions. Connections through a proxy, and those
of an application's own client, are httpx's; see `ClientSettings.open_for`.
"""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from io import BytesIO
from typing import Any, NamedTuple, NoReturn
from weakref import finalize

import aiohttp
import httpx
import orjson
from yarl import URL

from r3agent.errors import ConfigError

KEEP_ALIVE_S = 4.0
"""Time that an idle connection is kept; uvicorn closes its end after 5 s."""

MAX_HEADER = 2**16
"""Maximum length of a header of a response, as gateways send them."""

AT_ONCE = 2**20
"""Length of a body, e.g. with images, from which it is sent in pieces: aiohttp warns of one that blocks the loop."""

MAX_REDIRECTS = 20
DECODED = {"content-encoding", "transfer-encoding", "content-length"}
"""Headers of a response that describe its content before it was decoded."""


KINDS: tuple[tuple[Any, type[httpx.RequestError]], ...] = (
    (aiohttp.ConnectionTimeoutError, httpx.ConnectTimeout),
    (TimeoutError, httpx.ReadTimeout),
    (aiohttp.TooManyRedirects, httpx.TooManyRedirects),
    ((aiohttp.ClientConnectorError, ValueError), httpx.ConnectError),
    ((aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError), httpx.RemoteProtocolError),
    (aiohttp.ClientResponseError, httpx.RemoteProtocolError),
    ((aiohttp.ClientError, OSError), httpx.ReadError),
)
"""Exceptions of aiohttp, and those of httpx that stand for them; the first that fits."""


class Answer(NamedTuple):
    """Response whose content has been read."""

    is_success: bool
    content: bytes
    as_response: Callable[[], httpx.Response]


class Session:
    """Client of one event loop; the settings are those of `ClientSettings`.

    Args:
        verify: as httpx takes it.
    """

    def __init__(self, *, headers: Mapping[str, str], timeout_s: float, connect_timeout_s: float, verify: Any) -> None:
        self._headers = httpx.Headers(headers)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=verify, keepalive_timeout=KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s, sock_read=timeout_s),
            max_line_size=MAX_HEADER,
            max_field_size=MAX_HEADER,
        )
        self._sent: dict[httpx.URL, tuple[URL, dict[str, str]]] = {}
        """URL and headers of requests, by the URL that is asked for."""
        self._abandon = finalize(self, _abandon, self._session, asyncio.get_running_loop())

    async def fetch(self, method: str, url: httpx.URL, body: Any = None) -> Answer:
        """Send one request, follow redirects, and read the response.

        Raises:
            httpx.RequestError: there was no response.
        """
        content = None if body is None else _encode(body)
        try:
            async with self._request(method, url, content) as response:
                received = await response.read()
        except Exception as error:
            self._raise(error, method, url)
        return Answer(
            200 <= response.status < 300,
            received,
            lambda: self._as_httpx(response, received, method, url, content),
        )

    async def send(self, method: str, url: httpx.URL, body: Any = None) -> httpx.Response:
        """Send one request, follow redirects, and return the response, unread; the caller closes it.

        Raises:
            httpx.RequestError: there was no response.
        """
        content = None if body is None else _encode(body)
        try:
            response = await self._request(method, url, content)
        except Exception as error:
            self._raise(error, method, url)
        unread = _Unread(response, lambda error: self._raise(error, method, url))
        return self._as_httpx(response, unread, method, url, content)

    async def aclose(self) -> None:
        self._abandon.detach()
        await self._session.close()

    def _request(self, method: str, url: httpx.URL, content: bytes | None) -> Any:
        if (sent := self._sent.get(url)) is None:  # the hash of a URL takes long
            asked = self._as_request(method, url)
            bare = asked.url.copy_with(userinfo=b"")
            made = {"host", "content-length"} - self._headers.keys()
            own = {name: value for name, value in asked.headers.items() if name not in made}
            sent = self._sent[url] = URL(str(bare), encoded=True), own
        target, headers = sent
        return self._session.request(
            method,
            target,
            data=content if content is None or len(content) < AT_ONCE else BytesIO(content),
            headers={**headers, "content-type": "application/json"} if content is not None else headers,
            max_redirects=MAX_REDIRECTS,
        )

    def _as_request(self, method: str, url: httpx.URL, content: bytes | None = None) -> httpx.Request:
        request = httpx.Request(method, url, headers=self._headers, content=content)
        if url.username or url.password:
            request = next(httpx.BasicAuth(url.username, url.password).auth_flow(request))
        return request

    def _as_httpx(
        self,
        response: aiohttp.ClientResponse,
        content: bytes | httpx.AsyncByteStream,
        method: str,
        url: httpx.URL,
        sent: bytes | None,
    ) -> httpx.Response:
        headers = [(name, value) for name, value in response.raw_headers if name.decode().lower() not in DECODED]
        body: dict[str, Any] = {"content": content} if isinstance(content, bytes) else {"stream": content}
        return httpx.Response(
            response.status,
            headers=headers,
            request=self._as_request(method, url, sent),
            extensions={"reason_phrase": (response.reason or "").encode()},
            **body,
        )

    def _raise(self, error: Exception, method: str, url: httpx.URL) -> NoReturn:
        """Raise the exception that httpx raises where aiohttp raised this one."""
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise ConfigError(
                f"too many open files{_file_limit()}: each request under way needs one; raise it, or lower concurrency"
            ) from None
        if kind := next((ours for theirs, ours in KINDS if isinstance(error, theirs)), None):
            raise kind(str(error), request=self._as_request(method, url)) from error
        raise error


class _Unread(httpx.AsyncByteStream):
    """Content of a response, as it arrives."""

    def __init__(self, response: aiohttp.ClientResponse, fail: Callable[[Exception], NoReturn]) -> None:
        self._response, self._fail = response, fail

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for received in self._response.content.iter_any():
                yield received
        except Exception as error:
            self._fail(error)

    async def aclose(self) -> None:
        self._response.close()  # does nothing once the content was read to its end


def _encode(body: Any) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError:  # halves of surrogate pairs, and integers of more than 64 bits
        return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


def _file_limit() -> str:
    with suppress(ImportError):  # Windows
        import resource

        return f" (`ulimit -n` is {resource.getrlimit(resource.RLIMIT_NOFILE)[0]})"
    return ""


def _abandon(session: aiohttp.ClientSession, loop: asyncio.AbstractEventLoop) -> None:
    """Close the connections of a session that nobody uses any more, without a warning.

    A loop is not run for it if that would run tasks that are not the session's, e.g. those that an interrupt left: the
    connections are closed when it runs again.
    """
    connector = session.connector
    session.detach()

    async def close() -> None:
        if connector is not None:
            await connector.close()

    if loop.is_running() or asyncio.all_tasks(loop):
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(lambda: asyncio.ensure_future(close(), loop=loop))
        return
    closing = close()
    try:
        if loop.is_closed():  # nothing is left to await
            closing.send(None)
        else:
            loop.run_until_complete(closing)
    except (RuntimeError, StopIteration):  # RuntimeError: the loop was closed meanwhile, or another one is running here
        closing.close()
