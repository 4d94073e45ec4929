"""Weights of rows: a try counts once, however many rows it has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from datasets import Dataset

from r3agent.train.row_file import column


def tries_of(rows: Dataset) -> list[Hashable]:
    """Return the id of each row's try; rows of `distill` are a try each."""
    identities = zip(*(column(rows, name) for name in ("trajectory_id", "span_id", "label")), strict=True)
    return [i if identity[-1] == "distill" else identity for i, identity in enumerate(identities)]


def weights_of(rows: Dataset, try_ids: Sequence[Hashable]) -> list[float]:
    """Compute each row's share of the sampled tokens of its try."""
    sampled = [
        len(ids_T) if sampled_T is None else sum(sampled_T)
        for ids_T, sampled_T in zip(column(rows, "completion_ids_T"), column(rows, "sampled_T"), strict=True)
    ]
    tokens: Counter[Hashable] = Counter()
    for try_id, count in zip(try_ids, sampled, strict=True):
        tokens[try_id] += count
    return [count / tokens[try_id] for try_id, count in zip(try_ids, sampled, strict=True)]


class WeightedBeta(float):
    """Weight of the KL divergence, with a factor for each row: TRL multiplies it with divergences (B, T)."""

    weights_B: torch.Tensor

    def __new__(cls, beta: float, weights_B: torch.Tensor) -> WeightedBeta:
        weighted = super().__new__(cls, beta)
        weighted.weights_B = weights_B
        return weighted

    def __mul__(self, kl_BT: Any) -> Any:
        return kl_BT * self.weights_B[:, None] * float(self)
