"""Advantages of rows.

The baseline is the mean of the try's siblings, each of which counts once, however many rows it has. Tries of another
failure would bias it (arXiv 2402.03300).
"""

from __future__ import annotations

from array import array
from statistics import fmean, stdev
from typing import Any, TypeAlias

from r3agent.train.config import TrainConfig
from r3agent.train.row import Row, RowLabel

Every: TypeAlias = dict[RowLabel, "array[float]"]
"""Rewards of all siblings by label, those without a row for want of variance included."""

STD_EPSILON = 1e-4
"""Added to the standard deviation that divides advantages, as in TRL."""


def with_advantages(groups: list[list[list[Row]]], config: TrainConfig) -> list[Row]:
    """Compute the rows' advantages: reward minus the siblings' mean, scaled and weighted as configured.

    Args:
        groups: the rows of each sibling, by group.

    The scale is the sample standard deviation, as in TRL. That of a label, in which groups of equal rewards count, is
    applied by `scaled`, when all batches are known. Groups of equal rewards are left out of the result.
    """
    weights: dict[Any, float] = config.credit_weights
    found: list[Row] = []
    for tries_G in groups:
        label, rewards_G = tries_G[0][0].label, [rows[0].reward for rows in tries_G]
        if len(set(rewards_G)) == 1:
            continue
        mean, scale = fmean(rewards_G), 1.0
        if config.scale_rewards == "group":
            scale = stdev(rewards_G) + STD_EPSILON
        weight = weights.get(label, 1.0)
        found += [row._replace(advantage=weight * (row.reward - mean) / scale) for rows in tries_G for row in rows]
    return found


def scaled(rows: list[Row], every: Every, config: TrainConfig) -> list[Row]:
    """Divide the advantages by the scale of their label."""
    if not (scales := scales_of(every, config)):
        return rows
    return [row._replace(advantage=row.advantage / scales.get(row.label, 1.0)) for row in rows]


def scales_of(every: Every, config: TrainConfig) -> dict[RowLabel, float]:
    """Return the standard deviation of all rewards of each label, if it is configured that it divides advantages."""
    if config.scale_rewards != "batch":
        return {}
    return {label: stdev(rewards) + STD_EPSILON for label, rewards in every.items() if len(rewards) > 1}
