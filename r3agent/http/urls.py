"""URLs of OpenAI-compatible APIs: validation, routes, and redaction for messages."""

from __future__ import annotations

import re
from functools import lru_cache

import httpx

from r3agent.errors import ConfigError
from r3agent.http.headers import SECRET, VARIABLE

EXAMPLE = "http://127.0.0.1:8000/v1"
REMEDY = f"write e.g. {EXAMPLE}, and each of / ? # @ in a user, password or query as %2F %3F %23 %40"


@lru_cache  # every request names its server, in case it fails
def redact_url(url: str) -> str:
    """Remove user and password, everything up to the last `@`, and the values of secrets in the query."""
    url = re.sub(r"^((?:[a-z][a-z0-9+.-]*:)?//)?.*@", r"\1", url, flags=re.DOTALL | re.IGNORECASE)
    return re.sub(r"([?&])([^=&#]*)=[^&#]+", lambda m: f"{m[1]}{m[2]}=..." if SECRET.search(m[2]) else m[0], url)


def check_proxy(url: str, *, setting: str) -> None:
    """Check that no password of a proxy is written to a file.

    Raises:
        ConfigError: the URL has one that is not in the environment.
    """
    secret = url.rpartition("@")[0].rpartition(":")[2].removeprefix("//")
    if redact_url(url) != url and not VARIABLE.fullmatch(secret):
        raise ConfigError(
            f"{setting}: {redact_url(url)} with a password in it would be written to a file; put it into an "
            "environment variable, and write http://name:$PASSWORD@host:port, or $THAT_VARIABLE for the whole URL"
        )


COMPLETIONS = re.compile(rb"/+(?:chat/)?completions$")
"""Route that is pasted with a base URL."""


class ApiURL:
    """Base URL of an API, which makes the URLs of its routes; they keep its query.

    Args:
        base_url: base URL, which usually ends in `/v1`; a route `/chat/completions` at its end is dropped.
        setting: name of the URL in error messages.

    Raises:
        ConfigError: it is not an HTTP URL.
    """

    def __init__(self, base_url: str, *, setting: str = "base_url") -> None:
        wrong = f"{setting} = {redact_url(base_url)!r}"
        try:
            self._url = httpx.URL(base_url.strip())
        except httpx.InvalidURL:  # its message may quote a password
            raise ConfigError(f"{wrong}: not a URL; {REMEDY}") from None
        if "@" in base_url and not self._url.userinfo:
            raise ConfigError(f"{wrong}: the @ is not behind a user and password; {REMEDY}")
        port = self._url.port
        has_port = port is None or 0 < port < 2**16
        if self._url.scheme not in ("http", "https") or not self._url.host or not has_port:
            raise ConfigError(f"{wrong}: must start with http://, e.g. {EXAMPLE}")
        path, _, self._query = self._url.raw_path.partition(b"?")
        self._path = COMPLETIONS.sub(b"", path.rstrip(b"/"))
        self._routes: dict[str, httpx.URL] = {}
        self.is_versioned = self._path.endswith(b"/v1")
        """True if the path ends in `/v1`."""

    @property
    def is_bare(self) -> bool:
        """True if it has no path, so that it is probably that of the server and not of its API."""
        return not self._path

    @property
    def hint(self) -> str:
        """Advice where the server has no such route, or something other than the API answers."""
        if self.is_versioned:
            return "base_url must be that of an OpenAI-compatible API"
        return f"base_url usually ends in /v1: try {redact_url(str(self.route('/v1')))}"

    @property
    def root(self) -> str:
        """URL of the server itself, without user and password."""
        return str(self._join(self._path.removesuffix(b"/v1"), b"").copy_with(userinfo=b"")).rstrip("/")

    def route(self, path: str) -> httpx.URL:
        """Return the URL of a route of the API, e.g. `/chat/completions`."""
        if path not in self._routes:
            self._routes[path] = self._join(self._path + path.encode(), self._query)
        return self._routes[path]

    def server_route(self, path: str) -> httpx.URL:
        """Return the URL of a route outside the API, e.g. `/health`."""
        return self._join(self._path.removesuffix(b"/v1") + path.encode(), self._query)

    def _join(self, path: bytes, query: bytes) -> httpx.URL:
        return self._url.copy_with(raw_path=(path or b"/") + (b"?" + query if query else b""), fragment=None)
