"""Test of rows whose requests left sampling settings to the server: it may draw from less than its logprobs describe.

The mean of -log p over tokens that are sampled from p is the entropy of p, whatever the prompts are and wherever the
rows end. A server that samples with, e.g., `top_k` of the model's generation config draws the likelier tokens only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from r3agent.records.trajectory import Record
from r3agent.train.row import Row

Entropies: TypeAlias = Callable[[Sequence[tuple[list[int], list[int]]]], list[list[float]]]
"""Function that computes the entropy at each completion token, for pairs of prompt ids and completion ids."""

SAMPLE = 256
"""Largest number of rows to test."""

LIMIT, MIN_ERRORS, MIN_GROUPS = 0.15, 5.0, 10
"""Limit of |ratio - 1|, which must also be this many standard errors, over at least this many groups.

The bundled policy's first tries have 0.97 to 1.01, 0.97 to 0.99 in groups whose rewards differ, 0.83 at temperature
0.7 and 0.63 with `top_k = 1`.
"""


class Surprise(Record):
    """Sum of -logprob over sampled tokens, relative to the sum of the entropies there; 1 is expected."""

    rows: int
    groups: int
    ratio: float
    error: float
    """Standard error of `ratio`, with groups as the independent units."""

    @property
    def is_off(self) -> bool:
        off = abs(self.ratio - 1)
        return self.groups >= MIN_GROUPS and off > LIMIT and off > MIN_ERRORS * self.error


def measure_surprise(rows: Sequence[Row], version: str, entropies: Entropies) -> Surprise | None:
    """Test the doubtful rows that `version` sampled, or a sample of them; `None` if there are none."""
    doubtful = [
        i
        for i, row in enumerate(rows)
        if row.doubtful and row.logprobs_T is not None and row.policy_version in (None, version)
    ]
    if not doubtful:
        return None
    chosen = [rows[i] for i in doubtful[:: -(-len(doubtful) // SAMPLE)]]
    groups: dict[str, list[float]] = {}
    for row, values_T in zip(chosen, entropies([(r.prompt_ids_P, r.completion_ids_T) for r in chosen]), strict=True):
        sums = groups.setdefault(row.group_id, [0.0, 0.0])
        sums[0] -= sum(row.logprobs_T or ())
        sums[1] += sum(row.sampled(values_T))
    total = sum(entropy for _, entropy in groups.values())
    if total <= 0:
        return None
    ratio, n = sum(surprise for surprise, _ in groups.values()) / total, len(groups)
    residual = sum((surprise - ratio * entropy) ** 2 for surprise, entropy in groups.values())
    error = (residual * n / max(1, n - 1)) ** 0.5 / total
    return Surprise(rows=len(chosen), groups=n, ratio=ratio, error=error)
