"""Distilling: a successful retry as what the first try should have been.

Source: RLTF-SD, arXiv 2602.02482: (r_retry - mean r_first) · log π(retry | prompt of the first try), without an
importance weight, because nothing was sampled behind that prompt. The mean is over the task's first tries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import fmean

from r3agent.records.credit import credit_label, groups, reward
from r3agent.records.trajectory import Trajectory
from r3agent.train.row import Dropped, Row, RowMaker


def distilled(trajectories: Iterable[Trajectory], make_row: RowMaker) -> Iterator[Row | Dropped]:
    """A row for each retry after a reflection that passed where the first try had failed.

    It is in the group of the task's first tries, whose prompt it shares; its advantage is its weight.
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
