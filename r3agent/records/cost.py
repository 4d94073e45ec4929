"""Prices of tokens, and the cost of recorded model calls as a function of them: it is stored nowhere."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from r3agent.records.record import Record
from r3agent.records.span import Span
from r3agent.records.usage import usage_of

PER = 1_000_000
"""Number of tokens that a price is for."""


class Prices(Record):
    """Prices per million tokens, all in one currency."""

    prompt: float = Field(ge=0, allow_inf_nan=False)
    """Price of a million prompt tokens."""
    sampled: float = Field(ge=0, allow_inf_nan=False)
    """Price of a million sampled tokens, those of the thinking included."""
    cached: float | None = Field(default=None, ge=0, allow_inf_nan=False, exclude_if=lambda value: value is None)
    """Price of a million prompt tokens that the endpoint reports as read from its cache; default: as `prompt`."""
    currency: str = "USD"
    """Name of the currency, for messages only."""

    def cost(self, spans: Iterable[Span]) -> float | None:
        """Return the cost of recorded calls; `None` if the endpoint did not count the tokens of one."""
        used = usage_of(spans)
        if used.uncounted:
            return None
        read = self.prompt if self.cached is None else self.cached
        return ((used.prompt - used.cached) * self.prompt + used.cached * read + used.sampled * self.sampled) / PER

    def text(self, amount: float) -> str:
        """Return an amount of money as text."""
        return f"{amount:.4g} {self.currency}".strip()
