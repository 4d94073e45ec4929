"""Retry HTTP requests; no other layer retries.

Timeouts, refused and dropped connections, 408, 409, 429, 5xx and answers that are cut off, empty, without choices or no
JSON are retried, after the delay that the server asks for (`delays.py`) or else with exponential backoff. A delay of 0
is none, nor is a date in the past, e.g. of a server whose clock is behind. 400, 401, 403 and 404 are never retried, nor
an account without credit, nor a stream that has begun, nor a server that asks to wait longer than `MAX_DELAY_S`. If a
server has answered before, a web page, or JSON of another kind, is retried, because a proxy may have sent it; at first
it shows that the URL is wrong. If such a server became unreachable, retries continue for `outage_s`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import httpx
from tenacity import AsyncRetrying, RetryCallState, wait_random_exponential
from tenacity.asyncio import retry_if_exception

from r3agent.errors import EndpointError
from r3agent.http.errors import ServerError
from r3agent.http.events import ForeignAnswerError

MAX_BACKOFF_S = 30.0

T = TypeVar("T")


@dataclass
class Retry:
    """Retry rules for one server."""

    max_tries: int
    """Maximum number of tries of one request, including the first."""
    outage_s: float
    """Seconds to wait for a server that has answered before and became unreachable."""
    is_current: Callable[[], Awaitable[bool]] | None = None
    """Callback that returns False once another server has replaced this one, so that retries are pointless."""
    has_answered: bool = False

    async def run(self, request: Callable[[], Awaitable[T]], may_repeat: Callable[[], bool]) -> T:
        """Return the result of the first successful try.

        Raises:
            ServerError, httpx.RequestError, ValueError, EndpointError: the error of the last try, when no retry is left
                or useful.
        """

        async def is_worthwhile(error: BaseException) -> bool:
            if isinstance(error, ServerError):
                passes = error.is_transient and not error.asks_too_long
            elif isinstance(error, ForeignAnswerError):
                passes = self.has_answered
            else:
                passes = _is_outage(error) or _is_half(error)
            return passes and may_repeat() and (self.is_current is None or await self.is_current())

        async def attempt() -> T:
            nonlocal first
            if first is not None:
                error, first = first, None
                raise error
            result = await request()
            self.has_answered = True
            return result

        first: Exception | None = None
        try:
            return await attempt()
        except (ServerError, httpx.RequestError, ValueError, EndpointError) as error:
            first = error  # only a failure needs tenacity, whose state costs as much as a request
        retrying = AsyncRetrying(
            retry=retry_if_exception(is_worthwhile), stop=self._gives_up, wait=_wait_s, reraise=True
        )
        return await retrying(attempt)

    def _gives_up(self, state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        is_gone = isinstance(error, httpx.RequestError) and not isinstance(error, httpx.TimeoutException)
        if is_gone and self.has_answered:
            return state.seconds_since_start is not None and state.seconds_since_start > self.outage_s
        return state.attempt_number >= self.max_tries


def _is_outage(error: BaseException) -> bool:
    return isinstance(error, httpx.RequestError) and not isinstance(error, httpx.LocalProtocolError)


def _is_half(error: BaseException) -> bool:
    """Return True if a response with status 200 is no whole answer: no JSON, no choices, or a stream without an end."""
    return isinstance(error, ValueError | EndpointError)


def _wait_s(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked_s = error.wait_s if isinstance(error, ServerError) else None
    return asked_s if asked_s is not None else wait_random_exponential(multiplier=0.5, max=MAX_BACKOFF_S)(state)
