"""Advantages of rows.

The baseline is the mean of the try's siblings, each of which counts once, however many rows it has. Tries of another
failure would bias it (arXiv 2402.03300), unless they are compared as in `r3agent.train.baseline`.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, TypeAlias

from r3agent.train.baseline import Place
from r3agent.train.config import TrainConfig
from r3agent.train.row import WITHOUT_SIBLINGS, Dropped, Row, RowLabel

Every: TypeAlias = dict[RowLabel, "array[float]"]
"""Rewards of all siblings by label, those without a row for want of variance included."""

STD_EPSILON = 1e-4
"""Added to the standard deviation that divides advantages, as in TRL."""

ROUNDING = 1e-9
"""Differences below this are 0 but for the rounding of sums."""


def among_siblings(tries_G: list[list[Row]], config: TrainConfig) -> tuple[list[Row], list[Dropped]]:
    """Compute the advantages of siblings' rows; a group of one, or of equal rewards, is dropped."""
    rewards_G = [rows[0].reward for rows in tries_G]
    if len(set(rewards_G)) < 2:
        return [], _dropped(tries_G, alone=len(tries_G) == 1)
    found = zip(sibling_advantages(rewards_G, tries_G[0][0].label, config), tries_G, strict=True)
    return [row._replace(advantage=advantage) for advantage, rows in found for row in rows], []


def siblings_decide(config: TrainConfig) -> bool:
    """Return True if all siblings of a span, and nothing else, decide its advantage."""
    return config.baseline == "siblings" and config.scale_rewards != "batch"


def sibling_advantages(rewards_G: Sequence[float], label: RowLabel, config: TrainConfig) -> list[float]:
    """Compute advantages: reward minus the siblings' mean, scaled and weighted as configured.

    The scale is the sample standard deviation, as in TRL. That of a label, in which groups of equal rewards count, is
    applied by `scale_advantages`, when all batches are known.
    """
    mean, scale = fmean(rewards_G), 1.0
    if config.scale_rewards == "group" and len(rewards_G) > 1:
        scale = stdev(rewards_G) + STD_EPSILON
    return [_weight(label, config) * (reward - mean) / scale for reward in rewards_G]


def among_tasks(
    tries_G: list[list[Row]], baselines: Mapping[Place, float | None], config: TrainConfig
) -> tuple[list[Row], list[Dropped]]:
    """Compute the advantages of rows: reward minus baseline, weighted as configured; `scale_advantages` divides them.

    A try that nothing compares with, or that earned exactly its baseline, is dropped.
    """
    found, dropped = list[Row](), list[Dropped]()
    for rows in tries_G:
        first: Any = rows[0]
        baseline = baselines[first.label, first.trajectory_id, first.span_id]
        if baseline is None or abs(first.reward - baseline) < ROUNDING:
            reason = f"{first.label}_alone" if baseline is None else "at_baseline"
            dropped.append(Dropped(first.trajectory_id, first.span_id, first.label, reason))
        else:
            advantage = _weight(first.label, config) * (first.reward - baseline)
            found += [row._replace(advantage=advantage) for row in rows]
    return found, dropped


def _weight(label: RowLabel, config: TrainConfig) -> float:
    weights: dict[Any, float] = config.credit_weights
    return weights.get(label, 1.0)


def _dropped(tries: list[list[Row]], *, alone: bool) -> list[Dropped]:
    return [
        Dropped(row.trajectory_id, row.span_id, row.label, f"{row.label}_alone" if alone else "zero_variance")
        for row, *_ in tries
    ]


def scale_advantages(rows: list[Row], every: Every, config: TrainConfig) -> list[Row]:
    """Divide the advantages by the scale of their label."""
    if not (scales := scales_of(every, config)):
        return rows
    return [row._replace(advantage=row.advantage / scales.get(row.label, 1.0)) for row in rows]


def scales_of(every: Every, config: TrainConfig) -> dict[RowLabel, float]:
    """Return what divides the advantages of each label: the standard deviation of all its rewards, if configured."""
    scales = dict[RowLabel, float]()
    if config.scale_rewards == "batch" or (config.scale_rewards, config.baseline) == ("group", "batch"):
        for label, rewards in every.items():
            if label not in WITHOUT_SIBLINGS and len(rewards) > 1:
                scales[label] = stdev(rewards) + STD_EPSILON
    return scales
