"""HTTP clients: key, headers, timeouts, connections and proxies, and async requests.

This module sends a request once; `r3agent.http.retry` decides on retries.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias
from urllib.request import getproxies, proxy_bypass

import httpx

from r3agent.errors import ConfigError
from r3agent.http.errors import NO_KEY, read_error, read_error_event, redact_secrets
from r3agent.http.events import events, parse_json
from r3agent.http.headers import HEADER_NAME, has_key, parse_headers
from r3agent.http.session import Answer, Session
from r3agent.http.urls import redact_url

CONNECT_TIMEOUT_S = 10.0

HEADER_VARIABLES = {"OpenAI-Organization": "OPENAI_ORG_ID", "OpenAI-Project": "OPENAI_PROJECT_ID"}
"""Header to the environment variable with its value, as in OpenAI's own clients."""

CUSTOM_HEADERS = "OPENAI_CUSTOM_HEADERS"
"""Environment variable with further headers, one `Name: value` per line, which override all others."""


@dataclass(kw_only=True)
class ClientSettings:
    """Settings of an HTTP client, sync or async.

    Raises:
        ConfigError: the key, or one of the environment's headers, is not valid in an HTTP header.
    """

    timeout_s: float
    """Timeout of one request, in seconds; connecting gets at most `CONNECT_TIMEOUT_S` of it."""
    api_key: str | None = field(default=None, repr=False)
    """Bearer token of every request, stripped of whitespace; the stand-in for none yields to a key in a header."""
    headers: Mapping[str, str] | None = field(default=None, repr=False)
    """Further headers of every request, which override all others."""
    max_connections: int = 100
    trust_env: bool = True
    """Use the proxies from the environment; set it to False for servers on this machine."""
    proxy: str | None = field(default=None, repr=False)
    """URL of a proxy, instead of those of the environment."""
    verify: bool | str | ssl.SSLContext = True
    """Check of the server's certificate; a file or a context has an authority of one's own."""

    def __post_init__(self) -> None:
        self.api_key = (self.api_key or "").strip() or None
        if isinstance(self.verify, str):
            self.verify = trusting(self.verify)
        self._headers = self._read_headers()

    @property
    def all_headers(self) -> Mapping[str, str]:
        """Headers of every request, with the key."""
        return self._headers

    def open(self) -> httpx.Client:
        with self._usable_proxy():
            return httpx.Client(**self._arguments())

    def open_async(self) -> httpx.AsyncClient:
        """Open a client for one event loop."""
        with self._usable_proxy():
            return httpx.AsyncClient(**self._arguments())

    def open_for(self, url: httpx.URL) -> httpx.AsyncClient | Session:
        """Open a client of a server for the running event loop: a direct one unless requests go through a proxy."""
        given = getproxies() if self.trust_env else {}
        if self.proxy or ((given.keys() & {url.scheme, "all"}) and not proxy_bypass(url.host)):
            return self.open_async()
        verify = self.verify
        if verify is True:  # the authorities that httpx trusts
            verify = httpx.create_ssl_context() if url.scheme == "https" else True
        connect_timeout_s = min(CONNECT_TIMEOUT_S, self.timeout_s)
        return Session(
            headers=self._headers, timeout_s=self.timeout_s, connect_timeout_s=connect_timeout_s, verify=verify
        )

    def lent(self, client: httpx.AsyncClient) -> Lent:
        """Return a client of the application with the headers and the timeout of these settings."""
        headers = self._headers.copy()
        if self.api_key == NO_KEY and has_key(client.headers):
            headers.pop("authorization", None)
        for name in client.headers.keys() & {"user-agent", "accept"}:
            headers.pop(name, None)
        return Lent(client, headers, self._timeout())

    def redact(self, text: str, url: httpx.URL) -> str:
        """Remove the secrets of a request to a URL from a text."""
        return redact_secrets(text, httpx.Request("GET", url, headers=self._headers))

    def _timeout(self) -> httpx.Timeout:
        return httpx.Timeout(self.timeout_s, connect=min(CONNECT_TIMEOUT_S, self.timeout_s))

    def _arguments(self) -> dict[str, Any]:
        most = self.max_connections
        return {
            "headers": self._headers,
            "timeout": self._timeout(),
            "limits": httpx.Limits(max_connections=most, max_keepalive_connections=most),
            "trust_env": self.trust_env,
            "proxy": self.proxy,
            "verify": self.verify,
        }

    @contextmanager
    def _usable_proxy(self) -> Generator[None]:
        """Name the setting, or the environment's variables, in the error of a proxy that httpx cannot use."""
        try:
            yield
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            names = [name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "all_proxy")]
            place = f"in {', '.join(sorted(names))}" if self.proxy is None else "of the setting `proxy`"
            raise ConfigError(f"the proxy {place}: {redact_url(str(error))}; correct it") from None

    def _read_headers(self) -> httpx.Headers:
        headers = httpx.Headers({"Accept": "application/json", "User-Agent": "r3agent"})
        for name, variable in HEADER_VARIABLES.items():
            if value := os.environ.get(variable, "").strip():
                headers[name] = _check_header(value, variable)
        if self.api_key and not (self.api_key == NO_KEY and has_key(self.headers)):
            headers["Authorization"] = f"Bearer {_check_header(self.api_key, 'the API key')}"
        lines = [line for line in os.environ.get(CUSTOM_HEADERS, "").splitlines() if ":" in line]
        for name, value in parse_headers(lines, setting=CUSTOM_HEADERS).items():
            headers[name] = _check_header(value, f"{name} of {CUSTOM_HEADERS}")
        for name, value in (self.headers or {}).items():
            if not HEADER_NAME.fullmatch(name):
                raise ConfigError(f"headers: {name[:40]!r} is not the name of a header")
            headers[name] = _check_header(value, f"the header {name}")
        return headers


def trusting(file: str) -> ssl.SSLContext:
    """Make a context that trusts the authorities of a file, and no others.

    Raises:
        ConfigError: it is no file of certificates.
    """
    try:
        return ssl.create_default_context(cafile=file)
    except OSError as error:  # ssl.SSLError too
        raise ConfigError(
            f"verify = {file!r}: {error.strerror or error}; give a file of certificates in the PEM format, or false"
        ) from None


def _check_header(value: str, source: str) -> str:
    if not (isinstance(value, str) and value.isascii() and value.isprintable()):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"{source} has characters that no HTTP header can carry; was it copied whole?")
    return value


class Lent(NamedTuple):
    """Client of the application, which also closes it, with what each request adds to its settings."""

    client: httpx.AsyncClient
    headers: Mapping[str, str]
    timeout: httpx.Timeout


Client: TypeAlias = httpx.AsyncClient | Lent | Session
"""Client of one event loop."""


async def send(
    client: httpx.AsyncClient | Lent,
    method: str,
    url: httpx.URL,
    body: Any = None,
    *,
    stream: bool = False,
    follow_redirects: bool = False,
) -> httpx.Response:
    """Send one request and return the response with any status.

    Args:
        stream: leave the content unread; the caller closes the response.

    Raises:
        httpx.RequestError: there was no response.
    """
    own: dict[str, Any] = {}
    if isinstance(client, Lent):
        client, own = client.client, {"headers": client.headers, "timeout": client.timeout}
    request = client.build_request(method, url, json=body, **own)
    try:
        return await client.send(request, stream=stream, follow_redirects=follow_redirects)
    except (ValueError, OSError) as error:  # a host name that cannot be encoded is a ValueError
        raise httpx.ConnectError(str(error), request=request) from error


class Content(NamedTuple):
    """Content of a response."""

    text: bytes
    parsed: Any
    """The same as a value; `None` if it is not JSON."""


async def fetch(client: Client, method: str, url: httpx.URL, body: Any = None) -> Content:
    """Send one request and return the content of its response, parsed once.

    Raises:
        ServerError: the server refused it, or responded with an error and status 2xx.
        httpx.RequestError: there was no response.
    """
    if isinstance(client, Session):
        answer = await client.fetch(method, url, body)
    else:
        response = await send(client, method, url, body, follow_redirects=True)
        answer = Answer(response.is_success, response.content, lambda: response)
    content = answer.content
    if not answer.is_success:
        raise read_error(answer.as_response())
    parsed = None
    with suppress(ValueError):
        parsed = parse_json(content)
    if error := read_error_event(parsed, answer.as_response):
        raise error
    return Content(content, parsed)


async def stream(client: Client, url: httpx.URL, body: dict[str, Any], take: Callable[[Any], None]) -> None:
    """Post a request with `stream` and pass each parsed event of the response to `take`.

    Raises:
        ServerError: the server refused it, or sent an error as an event.
        httpx.RequestError: there was no response, or the stream broke off.
        ValueError: an event, or a response without events, is not JSON.
    """
    if isinstance(client, Session):
        response = await client.send("POST", url, body)
    else:
        response = await send(client, "POST", url, body, stream=True, follow_redirects=True)
    try:
        if not response.is_success:
            await response.aread()
            raise read_error(response)
        async for event in events(response):  # to its end: only then httpx reuses the connection
            if error := read_error_event(event, lambda: response):
                raise error
            take(event)
    finally:
        await response.aclose()
