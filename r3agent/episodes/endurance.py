"""Decision between tasks that the endpoint fails on and an endpoint that fails.

A request that always gets a 500 must not end a collection, and an endpoint that is down must not turn all remaining
tasks into errors. So episodes that ended with an error of the endpoint are held back. After a few of them, and at the
end, an episode that succeeded before is tried again: if it succeeds, they are stored; otherwise the collection ends,
and they are not stored, because it was none of their answers that caused the errors.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from r3agent.errors import AccessError, EndpointError, ProtocolError, R3Error, UnreachableError, VerifierError
from r3agent.records.trajectory import Trajectory

FAILURES = 8
"""Number of errors of the endpoint after which it is tried again."""


def endpoint_error(error: R3Error | None) -> BaseException | None:
    """Return the error of an endpoint, the policy's or the judge's, that ended an episode; `None` for any other."""
    of_endpoint = error.__cause__ if isinstance(error, VerifierError) else error
    return of_endpoint if isinstance(of_endpoint, EndpointError | AccessError | ProtocolError) else None


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
        self._later_limit = min(FAILURES, n_workers)
        self._held: list[tuple[Trajectory, R3Error]] = []

    async def take(self, episode: Trajectory, cause: R3Error | None) -> None:
        """Store an episode, or hold it back.

        Args:
            cause: error that ended the episode.

        Raises:
            R3Error: the endpoint fails; the error is of the class of `cause`.
        """
        found = endpoint_error(cause)
        if cause is None or found is None:
            if cause is None:
                self._limit = self._later_limit
            self._store(episode)
            return
        if isinstance(found, AccessError | UnreachableError):
            raise cause  # no task caused it
        self._held.append((episode, cause))
        if len(self._held) >= self._limit:
            await self.end()

    async def end(self) -> None:
        """Store the episodes that are held back, if the endpoint still answers.

        Raises:
            R3Error: the endpoint fails; the error is of the class of the last cause.
        """
        held, self._held = self._held, []
        if held and not await self._answers_again():
            _, cause = held[-1]
            raise type(cause)(
                f"{cause}; {len(held)} episodes ended with such an error, and none succeeds: the collection ends; "
                "finished episodes are stored: collect again when the endpoint answers"
            ) from cause.__cause__
        for episode, _ in held:
            self._store(episode)
