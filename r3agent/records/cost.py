"""Prices of tokens, and the cost of recorded model calls as a function of them: it is stored nowhere."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from r3agent.records.record import Record
from r3agent.records.span import Span

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
        """Return the cost of recorded calls; `None` if the endpoint did not count the tokens of one.

        Siblings that were sampled by one request, which share its latency, pay for its prompt once.
        """
        requests: set[object] = set()
        total = 0.0
        for span in spans:
            if span.refused:
                continue
            if span.completion_tokens is None:
                return None
            request = span.span_id if span.latency_s is None else (span.parent_id, span.label, span.latency_s)
            prompt = 0 if request in requests else span.prompt_tokens or 0
            requests.add(request)
            cached = min(span.cached_tokens or 0, prompt)
            read = self.prompt if self.cached is None else self.cached
            total += (prompt - cached) * self.prompt + cached * read + span.completion_tokens * self.sampled
        return total / PER

    def text(self, amount: float) -> str:
        """Return an amount of money as text."""
        return f"{amount:.4g} {self.currency}".strip()
