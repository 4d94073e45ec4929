"""The endpoint behind a gateway: its URLs, the headers that reach it, and requests to it."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from r3agent.errors import ConfigError
from r3agent.http.client import trusting
from r3agent.http.headers import has_key
from r3agent.http.retry import Retry
from r3agent.http.urls import ApiURL, redact_url
from r3agent.policy.base import Access

CONNECT_TIMEOUT_S = 30.0
"""Timeout of a connection; a thousand at once take seconds."""

KEEP_ALIVE_S = 4.0
"""Time for which an idle connection is kept: less than in uvicorn, vLLM's server, which closes it after 5 s."""

MIN_SECRET = 6
"""Minimum number of characters of a secret to be redacted."""

CHAT = "/chat/completions"
"""Route of all calls."""

HOP_BY_HOP = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"),
        *("te", "trailer", "transfer-encoding", "upgrade"),
    }
)
"""Headers of one connection, as in RFC 9110."""

OF_BODY = frozenset({"content-length", "content-encoding", "expect", "host", "accept-encoding"})
"""Headers that the gateway's own requests and responses have, with values of their own."""

KEYS = ("authorization", "x-api-key", "api-key")
"""Headers with an API key."""


class UpstreamError(Exception):
    """There is no response of the upstream, or it broke off.

    Attributes:
        status: status of the response that tells the client.
        is_unreachable: nothing was sent.
    """

    def __init__(self, message: str, *, status: int = 502, is_unreachable: bool = False) -> None:
        super().__init__(message)
        self.status, self.is_unreachable = status, is_unreachable


@dataclass(kw_only=True)
class Target:
    """Endpoint and the secrets for it.

    Raises:
        ConfigError: the URL is not an HTTP URL, or the proxy is no HTTP proxy.
    """

    base_url: str
    api_key: str | None = field(default=None, repr=False)
    """Key of every request, in place of the clients' own."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    """Further headers of every request, which override the clients'."""
    token: str | None = field(default=None, repr=False)
    """Token of the gateway, which goes no further."""
    proxy: str | None = field(default=None, repr=False)
    """URL of a proxy; default: that of the environment."""
    verify: bool | str | ssl.SSLContext = True
    """Check of the server's certificate, as `OpenAIPolicy` documents it."""
    retry: Retry | None = None
    """Rules by which failed requests are tried again; `None` leaves that to the client."""

    def __post_init__(self) -> None:
        self._api = ApiURL(self.base_url, setting="upstream")
        self._urls: dict[tuple[str, bool], str] = {}
        self.shown = redact_url(self.base_url)
        """URL for messages."""
        url, self.through = self._api.route(""), self.proxy
        """Proxy of the requests."""
        if self.through is None and not proxy_bypass(url.host):
            self.through = getproxies().get(url.scheme) or getproxies().get("all")
        if self.through is not None and httpx.URL(self.through).scheme not in ("http", "https"):
            raise ConfigError(f"proxy = {redact_url(self.through)!r}: a gateway takes HTTP proxies, http://HOST:PORT")
        self.ssl = trusting(self.verify) if isinstance(self.verify, str) else self.verify
        if self.ssl is True and url.scheme == "https":  # the authorities that httpx trusts
            self.ssl = httpx.create_ssl_context()

    def at(self, base_url: str, headers: Mapping[str, str], access: Access | None) -> Target:
        """Return the policy's endpoint, which gets `headers`, and the key of this one if they have none.

        Args:
            access: the policy's own; `None` for that of this one.
        """
        given: dict[str, Any] = {"proxy": self.proxy, "verify": self.verify}
        if access is not None:
            retry = Retry(max_tries=access.max_tries, outage_s=access.outage_s)
            given = {"proxy": access.proxy, "verify": access.verify, "retry": retry}
        api_key = None if has_key(headers) else self.api_key
        own = {**self.headers, **headers}
        return Target(base_url=base_url, api_key=api_key, headers=own, token=self.token, **given)

    def url(self, path: str, query: str = "", *, of_server: bool = False) -> URL:
        """Return the URL of a route, with the client's query.

        Args:
            path: route of the API, e.g. `/chat/completions`.
            query: as the client encoded it; decoded, it could end the request's line.
            of_server: it is a route outside the API, e.g. `/tokenize`.
        """
        if (base := self._urls.get((path, of_server))) is None:
            base = str(self._api.server_route(path) if of_server else self._api.route(path))
            if path == CHAT:  # parsing takes longer than all else here
                self._urls[path, of_server] = base
        return URL(f"{base}{'&' if '?' in base else '?'}{query}" if query else base, encoded=True)

    def fill_in(self, client: CIMultiDictProxy[str], *, without: Iterable[str] = ()) -> CIMultiDict[str]:
        """Return the headers of a request to the upstream.

        Args:
            client: headers of the client's request.
            without: further headers to leave out, in lower case.
        """
        own = self.api_key is not None or has_key(self.headers)
        left_out = {*_of_connection(client), *OF_BODY, *without, *(KEYS if own else ())}
        headers = CIMultiDict(
            (name, value)
            for name, value in client.items()
            if (low := name.lower()) not in left_out
            and not low.startswith("x-r3-")
            and not (low in KEYS and bare_key(value) == self.token)
        )
        if self.api_key is not None and not has_key(self.headers):
            headers["Authorization"] = f"Bearer {self.api_key}"
        headers.update(self.headers)
        return headers

    def redact(self, content: bytes) -> bytes:
        """Remove the gateway's own secrets, which a server may quote, from a response for a client."""
        for secret in (self.api_key, *self.headers.values()):
            if secret and len(secret) >= MIN_SECRET and secret.encode() in content:
                content = content.replace(secret.encode(), b"[a key of the gateway]")
        return content


def bare_key(value: str) -> str:
    """Return the key in the value of one of `KEYS`."""
    return value[7:].strip() if value[:7].lower() == "bearer " else value


def to_client(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """Return the headers of a response to the client, from those of the upstream's."""
    left_out = {*_of_connection(headers), *OF_BODY}
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in left_out)


def _of_connection(headers: CIMultiDictProxy[str]) -> set[str]:
    named = ",".join(headers.getall("Connection", ())).lower().split(",")
    return {*HOP_BY_HOP, *(name.strip() for name in named)}


class Upstream:
    """HTTP client of a gateway, for one event loop.

    Args:
        timeout_s: longest time without a byte of the upstream.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Content-Type", "Accept"),
        )

    async def send(
        self, target: Target, method: str, url: URL, headers: Mapping[str, str], content: bytes | None
    ) -> aiohttp.ClientResponse:
        """Send one request and return the response, with any status, whose content is unread.

        Raises:
            UpstreamError: there was no response.
        """
        sent: Any = headers
        try:
            return await self._session.request(
                method,
                url,
                headers=sent,
                data=content,
                allow_redirects=False,
                proxy=target.through,
                ssl=target.ssl,
            )
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise self.failure(target, error) from None

    def failure(self, target: Target, error: Exception) -> UpstreamError:
        """Describe why there was no response, or only a part of one."""
        if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError):
            return UpstreamError(f"{target.shown}: no answer within {self._timeout_s:g} s", status=504)
        if isinstance(error, TimeoutError):
            message = f"{target.shown}: no connection within {CONNECT_TIMEOUT_S:g} s"
            return UpstreamError(message, status=504, is_unreachable=True)
        if isinstance(error, aiohttp.ClientHttpProxyError):
            return UpstreamError(f"{target.shown}: the proxy refuses the connection with status {error.status}")
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.InvalidURL):
            reason = getattr(error, "strerror", None) or type(error).__name__
            return UpstreamError(f"{target.shown}: cannot be reached: {reason}", is_unreachable=True)
        return UpstreamError(f"{target.shown}: the connection broke off ({type(error).__name__})")

    async def close(self) -> None:
        await self._session.close()
