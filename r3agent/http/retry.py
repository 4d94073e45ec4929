"""Retry HTTP requests, in this one layer.

Tried again are timeouts, refused and dropped connections, 408, 409, 429 and 5xx: after as long as the server's
Retry-After says, else with exponential backoff. Never 400, 401, 403 or 404, and never a stream that has begun. A server
that has answered before and is gone is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx
from tenacity import AsyncRetrying, RetryCallState, wait_random_exponential
from tenacity.asyncio import retry_if_exception

from r3agent.http.errors import ServerError

MAX_BACKOFF_S = 30.0
MAX_RETRY_AFTER_S = 300.0

T = TypeVar("T")


@dataclass
class Retry:
    """Rules for one server."""

    max_tries: int
    """Tries of one request, the first included."""
    outage_s: float
    """Time to wait for a server that has answered before and is gone, in seconds."""
    is_current: Callable[[], Awaitable[bool]] | None = None
    """Returns False when another server has taken its place, so that trying again is of no use."""
    has_answered: bool = False

    async def run(self, request: Callable[[], Awaitable[T]], may_repeat: Callable[[], bool]) -> T:
        """Return the result of the first try that succeeds.

        Raises:
            ServerError, httpx.RequestError: the last try's; nothing more is worth trying.
        """

        async def is_worthwhile(error: BaseException) -> bool:
            passes = error.is_transient if isinstance(error, ServerError) else _is_outage(error)
            return passes and may_repeat() and (self.is_current is None or await self.is_current())

        async def attempt() -> T:
            result = await request()
            self.has_answered = True
            return result

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


def _wait_s(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    retry_after_s = _retry_after_s(error.retry_after) if isinstance(error, ServerError) else None
    if retry_after_s is not None:
        return min(retry_after_s, MAX_RETRY_AFTER_S)
    return wait_random_exponential(multiplier=0.5, max=MAX_BACKOFF_S)(state)


def _retry_after_s(header: str) -> float | None:
    """Read seconds, or a date as RFC 9110 also allows; `None` for anything else."""
    if header.isdecimal() or header.replace(".", "", 1).isdecimal():
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None
