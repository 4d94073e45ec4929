"""Limit on the requests in flight to one server, which grows while the server keeps up, and shrinks when it does not.

The growth is that of a TCP connection: doubled with each round of answers until the first sign of overload, then by the
square root of the limit, as in Netflix's concurrency-limits. Signs are 408, 429, 503, 529 and timeouts, which take a
third, and answers that take twice as long as they did on average, which stop the growth. While a server asks one
request to wait, none begins.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

import httpx

from r3agent.http.errors import ServerError
from r3agent.http.urls import redact_url

logger = logging.getLogger(__name__)

BEGIN = 16
"""Number of requests in flight that an adaptive limit begins with."""

OVERLOADED = (408, 429, 503, 529)
"""Statuses of servers that have too many requests."""

SHRINK = 2 / 3

LONG_S = 10.0
"""Seconds of a pause that a warning tells of, because nothing happens meanwhile."""

SLOWER = 2.0
"""Recent latency in relation to the average above which the limit does not grow."""

T = TypeVar("T")


class Gate:
    """Semaphore whose limit may change; a context manager.

    Args:
        limit: returns how many may be inside at present.
    """

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self.inside = 0
        """Number of those inside."""
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def limit(self) -> int:
        return self._limit()

    async def __aenter__(self) -> None:
        while self.inside >= self.limit:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                turn.cancel()
                self.wake()
                raise
        self.inside += 1

    async def __aexit__(self, *_: object) -> None:
        self.inside -= 1
        self.wake()

    def wake(self) -> None:
        """Let in those for whom there is room."""
        room = self.limit - self.inside
        while room > 0 and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                room -= 1


class Slots:
    """Limit on the requests in flight to one server, for one event loop.

    Args:
        most: maximum limit, and the limit itself unless it is adaptive.
        adaptive: begin low, and follow the server's latency and errors.
    """

    def __init__(self, most: int, *, adaptive: bool = False) -> None:
        self._most, self._adaptive = most, adaptive
        self._limit = float(min(BEGIN, most)) if adaptive else float(most)
        self._doubles = True
        self._shrunk_at = self._paused_until = 0.0
        self._average_s = self._recent_s = 0.0
        self._gate = Gate(lambda: self.limit)

    @property
    def limit(self) -> int:
        return max(1, int(self._limit))

    async def run(self, request: Callable[[], Awaitable[T]]) -> tuple[T, float]:
        """Return the result of a request and its duration in seconds, without the wait for a slot."""
        async with self._gate:
            while (wait_s := self._paused_until - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            start = time.monotonic()
            try:
                result = await request()
            except (ServerError, httpx.TimeoutException) as error:
                if isinstance(error, httpx.TimeoutException) or error.status in OVERLOADED:
                    self._shrink(start)
                    self._pause(error)
                raise
            took_s = time.monotonic() - start
            self._grow(took_s)
            return result, took_s

    def _pause(self, error: Exception) -> None:
        """Begin no request before the time that a server asks for, unless no request waits that long."""
        if not isinstance(error, ServerError) or error.wait_s is None or error.asks_too_long:
            return
        now = time.monotonic()
        until = now + error.wait_s
        if until - max(now, self._paused_until) >= LONG_S:
            where = redact_url(error.url)
            logger.warning("%s: %s: no request to it begins for %.0f s, as it asks", where, error, until - now)
        self._paused_until = max(self._paused_until, until)

    def _shrink(self, start: float) -> None:
        """Shrink once for all requests that were in flight together."""
        if self._adaptive and start >= self._shrunk_at:
            self._limit = max(1.0, self._limit * SHRINK)
            self._shrunk_at, self._doubles = time.monotonic(), False

    def _grow(self, took_s: float) -> None:
        if not self._adaptive:
            return
        self._average_s += (took_s - self._average_s) * (0.01 if self._average_s else 1.0)
        self._recent_s += (took_s - self._recent_s) * (0.2 if self._recent_s else 1.0)
        if self._recent_s > SLOWER * self._average_s:
            self._doubles = False
        elif self._gate.inside >= self.limit - 1:  # only a limit that is used is known to be borne
            self._limit = min(self._most, self._limit + (1.0 if self._doubles else self._limit**-0.5))
            self._gate.wake()
