"""Decision whether another episode of a collection may begin."""

from __future__ import annotations

import time

from pydantic import Field

from r3agent.records.record import Record
from r3agent.records.summary import Tally


class CollectLimits(Record):
    """Limits on what one call of `collect` may spend; when one is reached, running episodes end and none begins."""

    max_episodes: int | None = Field(default=None, ge=1)
    """Maximum number of episodes that one collection runs, besides those stored before; the next call runs others."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Budget of sampled tokens of one collection; running episodes end when it is spent, and the next call goes on."""
    max_seconds: float | None = Field(default=None, gt=0)
    """Seconds after which a collection begins no further episode; running ones end, and the next call goes on."""


class Quota:
    """Answer to "may another episode begin?"; the limits count from here, and not what was stored before.

    Args:
        tally: counts of the episodes that have ended, including those stored before.
    """

    def __init__(self, limits: CollectLimits, tally: Tally) -> None:
        self._limits, self._tally = limits, tally
        self._start = time.monotonic()
        self._tokens_before = tally.tokens_sampled
        self._begun = 0
        self.ended_by: str | None = None
        """Limit that was reached first, with its value."""

    def begin(self) -> bool:
        """Count an episode that is about to begin; return False if it must not, because a limit is reached."""
        if self.ended_by is None:
            self.ended_by = self._reached()
        if self.ended_by is not None:
            return False
        self._begun += 1
        return True

    def _reached(self) -> str | None:
        spent = {
            "max_episodes": self._begun,
            "max_tokens": self._tally.tokens_sampled - self._tokens_before,
            "max_seconds": time.monotonic() - self._start,
        }
        for name, amount in spent.items():
            limit = getattr(self._limits, name)
            if limit is not None and amount >= limit:
                return f"{name} = {limit:g}"
        return None
