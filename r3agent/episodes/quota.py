"""Decision whether another episode of a collection may begin."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from typing import Any

from pydantic import Field

from r3agent.errors import ConfigError
from r3agent.records.cost import Prices
from r3agent.records.record import Record
from r3agent.records.summary import Tally
from r3agent.records.trajectory import Trajectory
from r3agent.records.usage import usage_of

BUDGETS = ("max_tokens", "max_cost", "max_seconds")
"""Limits that the episodes which run when one is reached exceed."""


class CollectLimits(Record):
    """Limits on one call of `collect`: when it has reached one, none begins, and running ones are finished."""

    max_episodes: int | None = Field(default=None, ge=1)
    """Maximum number of episodes that one collection runs; stored ones do not count. The next collection goes
    on with the others."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Budget of sampled tokens of one collection; when it is spent, no episode begins, running ones are finished, and
    the next collection goes on."""
    max_cost: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Budget of the cost of one collection, at the policy's prices; when it is spent, no episode begins, running ones
    are finished, and the next collection goes on."""
    target_groups: int | None = Field(default=None, ge=1)
    """Number of groups of reflections with different rewards, stored ones included, at which a collection is
    complete: it begins no more episodes, and the next one goes on only towards a higher target."""
    max_seconds: float | None = Field(default=None, gt=0)
    """Seconds after which a collection begins no episode; running ones are finished, which `episode_timeout_s` limits,
    and the next one goes on."""
    episode_timeout_s: float | None = Field(default=None, gt=0)
    """Time limit of one episode, in seconds; one that takes longer is recorded with an error, and others go on."""


class Quota:
    """Answer to "may another episode begin?"; it counts what this call spends, and of what was stored only the groups.

    Args:
        tally: counts of the stored episodes and of those that have ended.

    Raises:
        ConfigError: there is a budget of cost, but no price.
    """

    def __init__(self, limits: CollectLimits, tally: Tally, prices: Prices | None = None) -> None:
        if limits.max_cost is not None and prices is None:
            raise ConfigError(
                f"max_cost = {limits.max_cost:g}: the policy has no prices; give them, e.g. "
                "OpenAIPolicy(..., prices=Prices(prompt=0.5, sampled=1.5)) or [policy.prices] in r3.toml"
            )
        self._limits, self._tally, self._prices = limits, tally, prices
        self._start = time.monotonic()
        self._begun = 0
        self._tokens: int | None = 0
        self._cost: float | None = 0.0
        self.ended_by: str | None = None
        """Limit that was reached first."""

    @property
    def cost(self) -> float | None:
        """Cost so far; `None` without prices, or if the endpoint does not count tokens."""
        return None if self._prices is None else self._cost

    def begin(self) -> bool:
        """Count an episode that is about to begin; return False if it must not, because a limit is reached."""
        if self.ended_by is None:
            self.ended_by = self._reached()
        self._begun += self.ended_by is None
        return self.ended_by is None

    def add(self, episode: Trajectory) -> None:
        """Count what an episode spent."""
        used = usage_of(episode.sampled)
        cost = None if self._prices is None else self._prices.cost(episode.sampled)
        self.spend(None if used.uncounted else used.sampled, cost)

    def spend(self, tokens: int | None, cost: float | None) -> None:
        """Count sampled tokens and a cost, `None` if they are not known."""
        self._tokens = None if tokens is None or self._tokens is None else self._tokens + tokens
        self._cost = None if cost is None or self._cost is None else self._cost + cost

    def report(self, left: int) -> dict[str, Any]:
        """Return what the summary of a collection says of its limits.

        Args:
            left: number of episodes that were not run.
        """
        limits, spent = self._limits, self._spent()
        over = {name: spent[name] - (getattr(limits, name) or math.inf) for name in BUDGETS}
        groups, target = int(spent["target_groups"]), limits.target_groups
        ended_by = self.ended_by or (f"max_episodes = {limits.max_episodes}" if left and limits.max_episodes else None)
        is_short = target is not None and groups < target and not left and not ended_by
        return {
            "cost": self.cost,
            "ended_by": ended_by,
            "left": left,
            "exceeded": {name: round(amount, 6) for name, amount in over.items() if amount > 0},
            "unreached": f"target_groups = {target}: the rewards of {groups} differ" if is_short else None,
        }

    def share(self, n: int, lent: Collection[CollectLimits]) -> CollectLimits | None:
        """Return the limits of one of `n` more parts that run at once, without one on the number of episodes.

        Args:
            lent: limits of the parts that are running.

        Returns:
            An equal share of what is left; `None` if a limit is reached, or all that is left is lent.
        """
        self.ended_by = self.ended_by or self._reached()
        if self.ended_by is not None:
            return None
        spent, given = self._spent(), self._limits.model_dump(exclude={"max_episodes"}, exclude_none=True)
        for name in given.keys() & {"max_tokens", "max_cost", "target_groups"}:
            left = given[name] - spent[name] - sum(getattr(limits, name) for limits in lent)
            if left <= (1e-6 * given[name] if lent else 0):  # sums of shares are rounded
                return None
            given[name] = left / n if name == "max_cost" else max(1, left // n)
        if "max_seconds" in given:
            given["max_seconds"] -= spent["max_seconds"]
        return CollectLimits(**given)

    def _reached(self) -> str | None:
        for name, spent in (("max_tokens", self._tokens), ("max_cost", self._cost)):
            if spent is None and (limit := getattr(self._limits, name)) is not None:
                return f"{name} = {limit:g}: the endpoint does not count its tokens"
        limits = ((name, getattr(self._limits, name), amount) for name, amount in self._spent().items())
        return next((f"{name} = {limit:g}" for name, limit, amount in limits if limit and amount >= limit), None)

    def _spent(self) -> dict[str, float]:
        return {
            "max_episodes": self._begun,
            "max_tokens": self._tokens or 0,
            "max_cost": self._cost or 0.0,
            "target_groups": self._tally.groups_with_variance,
            "max_seconds": time.monotonic() - self._start,
        }
