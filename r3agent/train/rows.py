"""Trajectories to rows: choose the spans that are trained on, and compute their advantages.

Only the tokens of a credited span are completions; everything before them is prompt. Advantages are relative to the
span's siblings, never to another failure's: that would bias the baseline (arXiv 2402.03300).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from r3agent.errors import TrainingError
from r3agent.records.credit import Group, credit_label, groups, payers, reward
from r3agent.records.trajectory import Trajectory
from r3agent.train.config import TrainConfig
from r3agent.train.leak import leaks
from r3agent.train.report import RowReport, report_rows
from r3agent.train.row import Credited, Dropped, Retokenise, Row, RowLabel, RowMaker

if TYPE_CHECKING:
    from datasets import Dataset

STD_EPSILON = 1e-4
"""Addend to the standard deviation that divides advantages, as in TRL."""


def build_rows(
    trajectories: Iterable[Trajectory],
    *,
    config: TrainConfig,
    version: str,
    retokenise: Retokenise | None = None,
) -> tuple[list[Row], RowReport]:
    """Make the rows to train the policy `version` on, siblings side by side, and report what was dropped.

    Args:
        retokenise: gives tokens to spans that were recorded without; `None` drops those.

    Raises:
        TrainingError: no row is left.
    """
    trajectories = list(trajectories)
    credited = credit_spans(trajectories, config=config, version=version, retokenise=retokenise)
    report = report_rows(trajectories, credited, config, version)
    if not credited.rows:
        raise TrainingError(report.why_empty())
    return credited.rows, report


def why_untrainable(trajectories: Iterable[Trajectory], *, config: TrainConfig, version: str) -> str | None:
    """Return the message that `build_rows` would refuse these with, or `None`; nothing is tokenised."""
    trajectories = list(trajectories)
    credited = credit_spans(trajectories, config=config, version=version, retokenise=stand_in(config))
    return None if credited.rows else report_rows(trajectories, credited, config, version).why_empty()


def stand_in(config: TrainConfig) -> Retokenise | None:
    """Stand in for tokenising again: credit depends on which spans have a row, not on the ids in it."""
    return (lambda trajectory, span: ([0], [0])) if config.retokenise == "allow" else None


def credit_spans(
    trajectories: Sequence[Trajectory], *, config: TrainConfig, version: str, retokenise: Retokenise | None = None
) -> Credited:
    """Credit spans as `build_rows` does, and keep every span that was dropped; no row at all is no error."""
    make_row = RowMaker(config, version, retokenise)
    whole = [t for t in trajectories if t.error is None]
    dropped = list(_without_reward(trajectories, config))
    leaked: set[tuple[str, str]] = set()
    kept: list[list[Row]] = []
    zero_variance_groups = 0
    for label, source in config.credit.items():
        for group in groups(whole, label, source):
            made = list(_rows_of(group, make_row, leaked))
            dropped += [drop for drop in made if isinstance(drop, Dropped)]
            rows_G = [row for row in made if isinstance(row, Row)]
            if len({row.reward for row in rows_G}) > 1:
                kept.append(rows_G)
                continue
            zero_variance_groups += len(rows_G) > 1
            reason = "zero_variance" if len(rows_G) > 1 else f"{label}_alone"
            dropped += [Dropped(row.trajectory_id, row.span_id, label, reason) for row in rows_G]
    made = list(distill_rows(whole, make_row)) if config.distill else []
    dropped += [drop for drop in made if isinstance(drop, Dropped)]
    rows = [*_with_advantages(kept, config), *(row for row in made if isinstance(row, Row))]
    return Credited(rows, dropped, leaked, zero_variance_groups)


def to_dataset(rows: Iterable[Row]) -> Dataset:
    """Make the `datasets.Dataset` that the trainer reads, one column per field; needs the `train` extra."""
    from datasets import Dataset

    return Dataset.from_list([row._asdict() for row in rows])


def _without_reward(trajectories: Iterable[Trajectory], config: TrainConfig) -> Iterator[Dropped]:
    """Find the spans of credited labels that are in no group."""
    for trajectory in trajectories:
        for span in trajectory.spans:
            label = credit_label(trajectory, span)
            if label not in config.credit:
                continue
            if trajectory.error is not None:
                yield Dropped(trajectory.trajectory_id, span.span_id, label, "errored")
            elif reward(trajectory, span, config.credit[label]) is None:
                unlabelled = any(s.verdict is None for s in payers(trajectory, span, config.credit[label]))
                yield Dropped(
                    trajectory.trajectory_id, span.span_id, label, "unlabelled" if unlabelled else "no_reward"
                )


def _rows_of(group: Group, make_row: RowMaker, leaked: set[tuple[str, str]]) -> Iterator[Row | Dropped]:
    """Make rows without advantages; reflections that leak the answer go into `leaked`, and on as the config says."""
    config = make_row.config
    for trajectory, span, earned in zip(group.trajectories_G, group.spans_G, group.rewards_G, strict=True):
        if group.label == "reflect" and leaks(trajectory, span):
            leaked.add((trajectory.trajectory_id, span.span_id))
            if config.leak == "drop":
                yield Dropped(trajectory.trajectory_id, span.span_id, group.label, "leaked")
                continue
            if config.leak == "penalise":
                earned = reward(trajectory, span, config.credit["reflect"], leaked=True) or 0.0
        yield make_row(trajectory, span, label=group.label, group_id=group.group_id, reward=earned)


def _with_advantages(groups: list[list[Row]], config: TrainConfig) -> list[Row]:
    """Compute advantages: reward minus the siblings' mean, scaled and weighted as the config says.

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
    """Make a row of each retry after a reflection that passed where the first try had failed.

    It is in the group of the task's first tries, whose prompt it shares; its advantage is its weight.
    Source: RLTF-SD, arXiv 2602.02482: (r_retry - mean r_first) · log π(retry | prompt of the first try), without an
    importance weight, because nothing was sampled behind that prompt. The mean is over the task's first tries.
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
