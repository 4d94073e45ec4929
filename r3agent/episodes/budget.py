"""Budgets of one episode: when one is spent, nothing further is asked, and the record says why."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from r3agent._util.clock import steady_time
from r3agent.records.cost import Prices
from r3agent.records.trajectory import Record, Span
from r3agent.records.usage import usage_of

ENDED = "ended"
"""Metadata key of a trajectory that a budget ended, with the reason."""


class Budget(Record):
    """Limits on what an episode may spend.

    A request that was sent is finished, but a try of an agent ends after `max_seconds` whatever it does.
    """

    max_tokens_total: int | None = Field(default=None, ge=1)
    """Budget of prompt and sampled tokens of all model calls in the episode; when it is spent, nothing further is
    asked."""
    max_seconds: float | None = Field(default=None, gt=0)
    """Budget of seconds since the episode began, the waiting for a person included; when it is spent, nothing further
    is asked, and a try of an agent ends."""
    max_cost: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Budget of the cost of all model calls in the episode, in the currency of the policy's prices; when it is spent,
    nothing further is asked."""

    def spent(self, spans: Sequence[Span], began: float | None, prices: Prices | None = None) -> str | None:
        """Return why nothing further may be asked; `None` if the budget is not spent.

        Args:
            began: time of the beginning of the episode, as of `steady_time`; `None` if it is not known.
        """
        if self.max_tokens_total is not None:
            used = usage_of(spans)
            if used.uncounted:
                return f"max_tokens_total = {self.max_tokens_total}: the endpoint does not count its tokens"
            if (total := used.prompt + used.sampled) >= self.max_tokens_total:
                return f"max_tokens_total = {self.max_tokens_total}: {total} are used"
        if self.max_cost is not None and prices is not None:
            if (cost := prices.cost(spans)) is None:
                return f"max_cost = {self.max_cost:g}: the endpoint does not count its tokens"
            if cost >= self.max_cost:
                return f"max_cost = {self.max_cost:g}: {prices.text(cost)} are spent"
        if self.max_seconds is not None and began is not None and (took := steady_time() - began) >= self.max_seconds:
            return f"max_seconds = {self.max_seconds:g}: {took:.1f} have passed"
        return None
