"""Advantages of rows.

The baseline is the mean of the span's siblings. Spans of another failure would bias it (arXiv 2402.03300).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import fmean, stdev
from typing import Any

from r3agent.records.credit import credit_label, groups, reward
from r3agent.records.trajectory import Trajectory
from r3agent.train.config import TrainConfig
from r3agent.train.row import Dropped, Row, RowLabel, RowMaker

STD_EPSILON = 1e-4
"""Added to the standard deviation that divides advantages, as in TRL."""


def with_advantages(groups: list[list[Row]], config: TrainConfig) -> list[Row]:
    """Compute advantages: reward minus the siblings' mean, scaled and weighted as configured.

    The scale is the sample standard deviation, as in TRL.
    """
    every: dict[RowLabel, list[float]] = {}
    for rows_G in groups:
        every.setdefault(rows_G[0].label, []).extend(row.reward for row in rows_G)
    weights: dict[Any, float] = config.credit_weights
    rows: list[Row] = []
    for rows_G in groups:
        label, rewards_G = rows_G[0].label, [row.reward for row in rows_G]
        mean, scale = fmean(rewards_G), 1.0
        if config.scale_rewards != "none":
            scale = stdev(rewards_G if config.scale_rewards == "group" else every[label]) + STD_EPSILON
        weight = weights.get(label, 1.0)
        rows += [row._replace(advantage=weight * (row.reward - mean) / scale) for row in rows_G]
    return rows


def distill_rows(trajectories: Iterable[Trajectory], make_row: RowMaker) -> Iterator[Row | Dropped]:
    """Make a row from each retry after a reflection that passed although the first try had failed.

    The row joins the group of the task's first tries, whose prompt it shares; its advantage is its weight.
    Source: RLTF-SD, arXiv 2602.02482: (r_retry - mean r_first) · log π(retry | prompt of the first try), without an
    importance weight, because the retry was not sampled from that prompt. The mean is over the task's first tries.
    """
    for group in groups(trajectories, "attempt"):
        mean = fmean(group.rewards_G)
        for trajectory, attempt in zip(group.trajectories_G, group.spans_G, strict=True):
            for span in trajectory.spans:
                if attempt.passed or credit_label(trajectory, span) != "retry" or not span.passed:
                    continue
                earned = reward(trajectory, span) or 0.0
                yield make_row(
                    trajectory,
                    span,
                    label="distill",
                    group_id=group.group_id,
                    reward=earned,
                    advantage=(earned - mean) * make_row.config.distill,
                    prompt_of=attempt,
                )
