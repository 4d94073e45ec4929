"""The wire to one OpenAI-compatible endpoint: pooled connections, retries in one layer, errors mapped at one seam.

Tried again are timeouts, refused and dropped connections, 408, 409, 429 and 5xx: after as long as the server's
Retry-After says, else with exponential backoff. Never 400, 401, 403 or 404. The SDK's own retries are off.
"""

from __future__ import annotations

import asyncio
import time
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import openai
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from r3agent.errors import AccessError, ConfigError, EndpointError, PolicyError, ProtocolError, RequestError
from r3agent.urls import shown

CONNECT_TIMEOUT_S = 10.0
MAX_BACKOFF_S = 30.0
MAX_RETRY_AFTER_S = 300.0


class Reply(NamedTuple):
    """A response of the endpoint, not yet parsed."""

    content: bytes
    latency_s: float
    """Of the request that succeeded, without the wait for a free connection."""


class Connection(NamedTuple):
    """What belongs to one event loop."""

    client: openai.AsyncOpenAI
    slots: asyncio.Semaphore
    """Requests queue here rather than in the HTTP pool, where waiting would count as a timeout."""


class Endpoint:
    """Posts JSON to an OpenAI-compatible endpoint; usable from several event loops. `OpenAIPolicy` has the settings."""

    def __init__(self, base_url: str, *, api_key: str, concurrency: int, timeout_s: float, max_tries: int) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ConfigError(f"base_url = {shown(base_url)!r}: must start with http://, e.g. http://127.0.0.1:8000/v1")
        self.base_url = base_url
        self.timeout_s = timeout_s
        self.concurrency = concurrency
        self.max_tries = max_tries
        self._api_key = api_key
        # An HTTP client belongs to the event loop that opened its connections.
        self._connections: WeakKeyDictionary[asyncio.AbstractEventLoop, Connection] = WeakKeyDictionary()

    async def post(self, path: str, body: dict[str, Any]) -> Reply:
        """Post `body` and return the raw answer: validating it into the SDK's models would double the cost of a call.

        Raises:
            EndpointError: unreachable, timed out or failing, after `max_tries`.
            AccessError: the key, the model or the URL is wrong.
            RequestError: this request was refused.
        """
        client, slots = self._connection()

        async def once() -> Reply:
            async with slots:
                start = time.perf_counter()
                content = await client.post(path, body=body, cast_to=bytes)
                return Reply(content, time.perf_counter() - start)

        retrying = AsyncRetrying(
            retry=retry_if_exception(_is_transient),
            stop=stop_after_attempt(self.max_tries),
            wait=_wait_s,
            reraise=True,
        )
        try:
            return await retrying(once)
        except openai.OpenAIError as error:
            # Not chained: what a server says may quote the API key, which `_mapped` takes out.
            raise self._mapped(error, body.get("model")) from None

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        connection = self._connections.pop(asyncio.get_running_loop(), None)
        if connection is not None:
            await connection.client.close()

    def _connection(self) -> Connection:
        loop = asyncio.get_running_loop()
        if loop not in self._connections:
            limits = type(openai.DEFAULT_CONNECTION_LIMITS)(  # of whichever HTTP library this version of the SDK uses
                max_connections=self.concurrency,
                max_keepalive_connections=self.concurrency,
                keepalive_expiry=openai.DEFAULT_CONNECTION_LIMITS.keepalive_expiry,
            )
            client = openai.AsyncOpenAI(
                base_url=self.base_url,
                api_key=self._api_key,
                max_retries=0,
                timeout=openai.Timeout(self.timeout_s, connect=min(CONNECT_TIMEOUT_S, self.timeout_s)),
                http_client=openai.DefaultAsyncHttpxClient(limits=limits),
            )
            self._connections[loop] = Connection(client, asyncio.Semaphore(self.concurrency))
        return self._connections[loop]

    def _mapped(self, error: openai.OpenAIError, model: object) -> PolicyError:
        """The SDK's errors as ours."""
        where, tried = f"{shown(self.base_url)}, model {model!r}", f"tried {self.max_tries} times"
        match error:
            case openai.APITimeoutError():
                return EndpointError(
                    f"{where}: no answer within timeout_s = {self.timeout_s:g} ({tried}); raise it or ask for less"
                )
            case openai.APIConnectionError():
                return EndpointError(f"{where}: {error.__cause__ or error} ({tried}); is the server running?")
            case openai.APIStatusError(status_code=status):
                said = f"{where}: {status} {self._said(error)}"
                if status in (401, 403):
                    return AccessError(f"{said}; check the API key")
                if status in (404, 405):
                    return AccessError(f"{said}; check the model's name and that base_url ends in /v1")
                if _is_transient(error):
                    return EndpointError(f"{said} ({tried})")
                too_long = "context" in said or "max_model_len" in said
                remedy = "; shorten the conversation or lower sampling.max_tokens" if too_long else ""
                return RequestError(f"{said}{remedy}")
            case _:
                return ProtocolError(f"{where}: {error}")

    def _said(self, error: openai.APIStatusError) -> str:
        body = error.body
        said = body["message"] if isinstance(body, dict) and "message" in body else error.response.text
        return str(said).replace(self._api_key, "[the API key]").strip()[:500]


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, openai.APIStatusError):
        return error.status_code in (408, 409, 429) or error.status_code >= 500
    return isinstance(error, openai.APIConnectionError)


def _wait_s(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, openai.APIStatusError):
        said = _retry_after_s(error.response.headers.get("retry-after", ""))
        if said is not None:
            return min(said, MAX_RETRY_AFTER_S)
    return wait_random_exponential(multiplier=0.5, max=MAX_BACKOFF_S)(state)


def _retry_after_s(header: str) -> float | None:
    """Seconds, or a date as RFC 9110 also allows; `None` for anything else."""
    if header.isdecimal() or header.replace(".", "", 1).isdecimal():
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None
