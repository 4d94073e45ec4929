"""The wire to one OpenAI-compatible endpoint: pooled connections, retries in one layer, errors mapped at one seam.

Tried again are timeouts, refused and dropped connections, 408, 409, 429 and 5xx: after as long as the server's
Retry-After says, else with exponential backoff. Never 400, 401, 403 or 404, and never a stream that has begun. A server
that has answered before and is gone is waited for. The SDK's own retries are off.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import openai
import orjson
from tenacity import AsyncRetrying, RetryCallState, wait_random_exponential
from tenacity.asyncio import retry_if_exception

from r3agent._util.urls import check_url, redact_url
from r3agent.errors import AccessError, EndpointError, PolicyError, ProtocolError, RequestError

CONNECT_TIMEOUT_S = 10.0
MAX_BACKOFF_S = 30.0
MAX_RETRY_AFTER_S = 300.0


T = TypeVar("T")


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
    """Posts JSON to an OpenAI-compatible endpoint; usable from several event loops. `OpenAIPolicy` has the settings.

    Args:
        is_current: false when another server has taken its place, so that trying again is of no use.
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
        is_current: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self.base_url = check_url(base_url)
        self.timeout_s = timeout_s
        self.concurrency = concurrency
        self.outage_s = outage_s
        self.max_tries = max_tries
        self._is_current = is_current
        self._has_answered = False
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

        async def once(client: openai.AsyncOpenAI) -> bytes:
            return await client.post(path, body=body, cast_to=bytes)

        return Reply(*await self._trying(once, body.get("model")))

    async def stream(self, path: str, body: dict[str, Any], take: Callable[[Any], None]) -> float:
        """Post `body` and hand each chunk of the streamed answer, parsed, to `take`; returns its latency in seconds.

        Raises:
            EndpointError, AccessError, RequestError: as `post`; a stream that breaks off is not begun again.
        """
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        begun = False

        async def once(client: openai.AsyncOpenAI) -> None:
            nonlocal begun
            kind = openai.AsyncStream[object]
            async with await client.post(path, body=body, cast_to=object, stream=True, stream_cls=kind) as chunks:
                async for chunk in chunks:
                    begun = True
                    take(chunk)

        _, latency_s = await self._trying(once, body.get("model"), may_repeat=lambda: not begun)
        return latency_s

    async def weight_version(self) -> str | None:
        """What vLLM's /weight_info says, which is the version that was deployed last; `None` where it says nothing."""
        url = self.base_url.rstrip("/").removesuffix("/v1") + "/weight_info"

        async def once(client: openai.AsyncOpenAI) -> bytes:
            return await client.get(url, cast_to=bytes)

        try:
            content, _ = await self._trying(once, None)
            return orjson.loads(content)["weight_version"]
        except (RequestError, ProtocolError, ValueError, KeyError, TypeError):
            return None

    async def _trying(
        self,
        once: Callable[[openai.AsyncOpenAI], Awaitable[T]],
        model: object,
        may_repeat: Callable[[], bool] = lambda: True,
    ) -> tuple[T, float]:
        """The result of the first try that succeeds, and how long that one took."""
        client, slots = self._connection()

        async def timed() -> tuple[T, float]:
            async with slots:
                start = time.perf_counter()
                result = await once(client)
                self._has_answered = True
                return result, time.perf_counter() - start

        async def worthwhile(error: BaseException) -> bool:
            return _is_transient(error) and may_repeat() and (self._is_current is None or await self._is_current())

        retrying = AsyncRetrying(
            retry=retry_if_exception(worthwhile),
            stop=self._gives_up,
            wait=_wait_s,
            reraise=True,
        )
        try:
            return await retrying(timed)
        except openai.OpenAIError as error:
            # Not chained: what a server says may quote the API key, which `_mapped` takes out.
            raise self._mapped(error, model) from None

    def _gives_up(self, state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        is_gone = isinstance(error, openai.APIConnectionError) and not isinstance(error, openai.APITimeoutError)
        if is_gone and self._has_answered:
            return state.seconds_since_start is not None and state.seconds_since_start > self.outage_s
        return state.attempt_number >= self.max_tries

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
        where, tried = f"{redact_url(self.base_url)}, model {model!r}", f"tried {self.max_tries} times"
        match error:
            case openai.APITimeoutError():
                return EndpointError(
                    f"{where}: no answer within timeout_s = {self.timeout_s:g} ({tried}); raise it or ask for less"
                )
            case openai.APIConnectionError():
                waited = f"waited {self.outage_s:g} s" if self._has_answered else tried
                return EndpointError(f"{where}: {error.__cause__ or error} ({waited}); is the server running?")
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
