"""Terms of the model calls of one try: where the policy is served, and how it is asked."""

from __future__ import annotations

import threading
from asyncio import CancelledError
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from r3agent.errors import BudgetError, PolicyError, StepLimitError
from r3agent.http.errors import MIN_SECRET
from r3agent.policy.base import Access
from r3agent.records.sampling import LIMITS

MAX_REFUSED = 10
"""Number of calls that a try may ask for in vain; then it is ended, because its agent swallows the errors."""


class GivenUpError(CancelledError):
    """A call is refused in a way that few agents swallow.

    Args:
        pause_s: time before the call is refused, so that an agent that swallows this too does not spin.
    """

    def __init__(self, why: str, *, pause_s: float) -> None:
        super().__init__(why)
        self.pause_s = pause_s


@dataclass(kw_only=True)
class CallTerms:
    """Terms of one try, which instrumented clients and the gateway apply to each of its calls.

    A call of the policy goes to the version that is pinned here. A call of any other model goes out as it is.
    """

    names: frozenset[str] = frozenset()
    """Names by which the application asks for the policy, besides `model`."""
    model: str | None = None
    """Served name; `None` if each model that the application asks for is the policy."""
    base_url: str | None = None
    """Base URL of its server; `None` for the one that the client has."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    """Headers of the requests to `base_url`, with the key; never recorded."""
    access: Access | None = None
    """Settings of the policy's own requests to `base_url`; `None` if the sender has its own."""
    version: str | None = None
    """Version of a served name that has none."""
    holds: Callable[[], bool] = lambda: True
    """Returns False while the served name may stand for other weights than those of `version`."""
    sampling: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Fields of a request that the application left out."""
    seeds: Callable[[int], int | None] | None = None
    """Seed of the i-th call of the try, if the application gives none."""
    max_steps: int | None = None
    """Maximum number of model calls."""
    spent: Callable[[], str | None] = lambda: None
    """Returns why the budget of the episode is spent; `None` if it is not."""
    failure: PolicyError | None = field(default=None, init=False)
    """Why the last call failed, or why no further one is answered; `None` if the last was answered."""
    n_calls: int = field(default=0, init=False)
    n_refused: int = field(default=0, init=False)
    """Number of calls after the last that was allowed."""
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @property
    def secrets(self) -> list[str]:
        """Values of the headers, which no record may quote."""
        values = [value.removeprefix("Bearer ") for value in self.headers.values()]
        return [value for value in values if len(value) >= MIN_SECRET]

    @property
    def is_ignored(self) -> bool:
        """Return True if the agent goes on asking although its calls are refused."""
        return self.n_refused > MAX_REFUSED

    def give_up(self, why: str, *, counts: bool = False) -> NoReturn:
        """Refuse a call of an agent that swallows errors, or whose try has ended.

        Raises:
            GivenUpError: always.
        """
        self.n_refused += counts
        raise GivenUpError(why, pause_s=1.0 if self.n_refused > MAX_REFUSED + 1 else 0.0)

    def means_policy(self, model: object) -> bool:
        """Return True for a name of the policy; a request without a model means it too."""
        return self.model is None or model is None or model == self.model or model in self.names

    def count(self) -> int:
        """Count a call, and return its index in the try.

        Raises:
            StepLimitError: there were `max_steps` before it; a `BudgetError` if the budget of the episode is spent.
        """
        with self._lock:
            if (reason := self.spent()) is not None:
                self._refuse(BudgetError(reason))
            if self.max_steps is not None and self.n_calls >= self.max_steps:
                self._refuse(
                    StepLimitError(
                        f"max_steps = {self.max_steps}: the try asks for another model call; raise max_steps, or let "
                        "the agent stop earlier"
                    )
                )
            self.n_calls += 1
            return self.n_calls - 1

    def note(self, failure: PolicyError | None) -> None:
        """Note why a call failed, or that it was answered; the limit that a call beside it met stays."""
        if failure is not None or not isinstance(self.failure, StepLimitError):
            self.failure = failure

    def _refuse(self, why: StepLimitError) -> NoReturn:
        self.n_refused += 1
        self.failure = why
        raise why

    def filled(self, request: Mapping[str, Any], index: int) -> dict[str, Any]:
        """Return the fields that a request of the policy leaves out."""
        seed = None if self.seeds is None else self.seeds(index)
        fields = {**self.sampling, **({} if seed is None else {"seed": seed})}
        own = {*request, *(LIMITS if request.keys() & {*LIMITS} else ())}
        return {name: value for name, value in fields.items() if name not in own}
