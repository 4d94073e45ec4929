"""Budgets of one episode: when one is spent, no further try or reflection begins, and the record says why."""

from __future__ import annotations

import time

from pydantic import Field

from r3agent.records.cost import Prices
from r3agent.records.trajectory import Record, Trajectory

ENDED = "ended"
"""Metadata key of a trajectory that a budget ended, with the reason."""


class Budget(Record):
    """Limits on what an episode may spend; a try or a reflection that has begun is finished."""

    max_tokens_total: int | None = Field(default=None, ge=1)
    """Budget of prompt and sampled tokens of all model calls in the episode; when it is spent, nothing further
    begins."""
    max_seconds: float | None = Field(default=None, gt=0)
    """Budget of seconds since the episode began, the waiting for a person included; when it is spent, nothing further
    begins."""

    max_cost: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Budget of the cost of all model calls in the episode, in the currency of the policy's prices; when it is spent,
    nothing further begins."""

    def spent(self, tree: Trajectory, began: float | None, prices: Prices | None = None) -> str | None:
        """Return why nothing further may begin; `None` if the budget is not spent.

        Args:
            began: time of the beginning of the episode, in seconds since the epoch; `None` if it is not known.
        """
        if self.max_tokens_total is not None:
            if any(span.completion_tokens is None and not span.refused for span in tree.spans):
                return f"max_tokens_total = {self.max_tokens_total}: the endpoint does not count its tokens"
            used = sum((span.prompt_tokens or 0) + (span.completion_tokens or 0) for span in tree.spans)
            if used >= self.max_tokens_total:
                return f"max_tokens_total = {self.max_tokens_total}: {used} are used"
        if self.max_cost is not None and prices is not None:
            if (cost := prices.cost(tree.spans)) is None:
                return f"max_cost = {self.max_cost:g}: the endpoint does not count its tokens"
            if cost >= self.max_cost:
                return f"max_cost = {self.max_cost:g}: {prices.text(cost)} are spent"
        if self.max_seconds is not None and began is not None and (took := time.time() - began) >= self.max_seconds:
            return f"max_seconds = {self.max_seconds:g}: {took:.1f} have passed"
        return None
