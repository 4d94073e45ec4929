"""Advantages of rows.

The baseline is the mean of the try's siblings, each of which counts once, however many rows it has. Tries of another
failure would bias it (arXiv 2402.03300).
"""

from __future__ import annotations

from statistics import fmean, stdev
from typing import Any

from r3agent.train.config import TrainConfig
from r3agent.train.row import Row, RowLabel

STD_EPSILON = 1e-4
"""Added to the standard deviation that divides advantages, as in TRL."""


def with_advantages(groups: list[list[list[Row]]], config: TrainConfig) -> list[Row]:
    """Compute the rows' advantages: reward minus the siblings' mean, scaled and weighted as configured.

    Args:
        groups: the rows of each sibling, by group.

    The scale is the sample standard deviation, as in TRL. Groups of equal rewards count in that of a label, and are
    left out of the result.
    """
    every: dict[RowLabel, list[float]] = {}
    for tries_G in groups:
        every.setdefault(tries_G[0][0].label, []).extend(rows[0].reward for rows in tries_G)
    weights: dict[Any, float] = config.credit_weights
    found: list[Row] = []
    for tries_G in groups:
        label, rewards_G = tries_G[0][0].label, [rows[0].reward for rows in tries_G]
        if len(set(rewards_G)) == 1:
            continue
        mean, scale = fmean(rewards_G), 1.0
        if config.scale_rewards != "none":
            scale = stdev(rewards_G if config.scale_rewards == "group" else every[label]) + STD_EPSILON
        weight = weights.get(label, 1.0)
        found += [row._replace(advantage=weight * (row.reward - mean) / scale) for rows in tries_G for row in rows]
    return found
