"""Decision between tasks that the endpoint fails on and an endpoint that fails.

A request that always gets a 500 must not end a collection, and an endpoint that is down must not turn all remaining
tasks into errors. So episodes that ended with an error of the endpoint are held back until an episode that began later
succeeds, and then stored. After a few errors in a row, and at the end, an episode that succeeded before is tried again:
if it succeeds, those held back are stored too; otherwise the collection ends, and they are not stored, because it was
none of their answers that caused the errors. However many errors there are in all, they end no collection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from r3agent.errors import AccessError, EndpointError, ProtocolError, R3Error, UnreachableError, VerifierError
from r3agent.records.trajectory import Trajectory

FAILURES = 8
"""Number of errors of the endpoint in a row after which it is tried again."""

PROBES = 3
"""Number of episodes that must all fail before the endpoint does: a healthy one refuses some requests too."""


def endpoint_error(error: R3Error | None) -> BaseException | None:
    """Return the error of an endpoint, the policy's or the judge's, that ended an episode; `None` for any other."""
    of_endpoint = error.__cause__ if isinstance(error, VerifierError) else error
    return of_endpoint if isinstance(of_endpoint, EndpointError | AccessError | ProtocolError) else None


class _Held(NamedTuple):
    """Episode that is held back."""

    number: int
    episode: Trajectory
    cause: R3Error


class Endurance:
    """Store of a collection's episodes that ends the collection if the endpoint fails.

    Args:
        store: stores an episode.
        answers_again: runs an episode again that succeeded before; returns False if there is none or it fails now.
        n_workers: number of concurrent episodes.
    """

    def __init__(
        self, store: Callable[[Trajectory], None], answers_again: Callable[[], Awaitable[bool]], *, n_workers: int
    ) -> None:
        self._store = store
        self._answers_again = answers_again
        # Before the first success, all concurrent episodes may be of tasks that fail fast.
        self._limit = max(FAILURES, n_workers)
        self._held: deque[_Held] = deque()
        self._in_a_row = 0
        self._trying = asyncio.Lock()
        self._failure: R3Error | None = None
        self.errors = 0
        """Number of errors of the endpoint so far."""

    async def take(self, episode: Trajectory, cause: R3Error | None, *, errors_before: int) -> None:
        """Store an episode, or hold it back.

        Args:
            cause: error that ended the episode.
            errors_before: value of `errors` when the episode began.

        Raises:
            R3Error: the endpoint fails; the error is of the class of `cause`.
        """
        found = endpoint_error(cause)
        if cause is None or found is None:
            self._store(episode)
            if cause is None:
                self._limit, self._in_a_row = FAILURES, 0
                while self._held and self._held[0].number <= errors_before:
                    self._store(self._held.popleft().episode)
            return
        if isinstance(found, AccessError | UnreachableError):
            raise cause  # no task caused it
        self.errors += 1
        number = self.errors
        async with self._trying:  # no worker begins more while the endpoint is tried
            if self._failure is not None:
                raise self._failure
            self._in_a_row += 1
            self._held.append(_Held(number, episode, cause))
            if self._in_a_row >= self._limit:
                await self.end()

    async def end(self) -> None:
        """Store the episodes that are held back, if the endpoint still answers.

        Raises:
            R3Error: the endpoint fails; the error is of the class of the last cause.
        """
        held, self._held, self._in_a_row = self._held, deque(), 0
        if held and not await self._answers():
            cause = held[-1].cause
            self._failure = type(cause)(
                f"{cause}; {len(held)} episodes ended with such an error, and none succeeds: the collection ends; "
                "finished episodes are stored: collect again when the endpoint answers"
            )
            raise self._failure from cause.__cause__
        for _, episode, _ in held:
            self._store(episode)

    async def _answers(self) -> bool:
        for _ in range(PROBES):
            if await self._answers_again():
                return True
        return False
