"""Comparison of the rows' recorded logprobs with those of the starting weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from r3agent.errors import TrainingError
from r3agent.records.trajectory import Record
from r3agent.train.config import PolicyStart, TrainConfig
from r3agent.train.row import Row


class Gap(Record):
    """Statistics of |recorded - recomputed| logprobs over completion tokens, in nats."""

    tokens: int
    mean: float
    p99: float
    max: float


class Mismatch(Record):
    """Distance of the starting weights from those that sampled the rows; `None` if no row recorded logprobs."""

    gap: Gap | None
    """Gap over the rows that the starting version sampled, or over all rows if it sampled none."""
    labels: dict[str, Gap]
    """Gap over the same rows, by span label."""
    ess: float | None
    """Effective sample size (Σw)² / Σw² as a share of the rows with recorded logprobs, where w is a row's probability
    under the starting weights divided by the recorded one; 1 if the starting version sampled all of them."""


def measure(rows: Sequence[Row], scores: Sequence[Sequence[float]], version: str) -> Mismatch:
    """Compare the rows' recorded logprobs with `scores`, those of the starting weights."""
    gaps = [
        (row, torch.tensor(row.logprobs_T) - torch.tensor(score_T))
        for row, score_T in zip(rows, scores, strict=True)
        if row.logprobs_T is not None
    ]
    if not gaps:
        return Mismatch(gap=None, labels={}, ess=None)
    compared = [(row, gap_T) for row, gap_T in gaps if row.policy_version in (None, version)] or gaps
    labels: dict[str, list[torch.Tensor]] = {}
    for row, gap_T in compared:
        labels.setdefault(row.label, []).append(gap_T)
    log_weights = torch.stack([-gap_T.sum() for _, gap_T in gaps]).double()
    log_ess = 2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)
    return Mismatch(
        gap=_gap([gap_T for _, gap_T in compared]),
        labels={label: _gap(gaps_T) for label, gaps_T in labels.items()},
        ess=log_ess.exp().item() / len(gaps),
    )


def _gap(gaps: Sequence[torch.Tensor]) -> Gap:
    values = torch.cat([*gaps]).abs().sort().values
    return Gap(
        tokens=len(values),
        mean=values.mean().item(),
        p99=values[int(0.99 * (len(values) - 1))].item(),
        max=values[-1].item(),
    )


def check(mismatch: Mismatch, config: TrainConfig, start: PolicyStart, *, force: bool = False) -> list[str]:
    """Refuse rows of another policy, or of one too far from the starting one.

    Returns:
        The reasons to refuse them that `force` overrides.

    Raises:
        TrainingError: a limit is exceeded; the message has the number, the limit and the remedy.
    """
    reasons: list[str] = []
    if mismatch.gap is not None and not mismatch.gap.mean <= config.max_mismatch:
        reasons.append(
            f"mean |logprob gap| = {mismatch.gap.mean:.4f} over {mismatch.gap.tokens} tokens, limit "
            f"{config.max_mismatch}: the rows were sampled by other weights, another chat template or another "
            f"temperature scale than {start.version} ({start.adapter or start.model}); train from the version that "
            "sampled them, raise max_mismatch, or use --force"
        )
    if mismatch.ess is not None and not mismatch.ess >= config.min_ess:
        reasons.append(
            f"effective sample size = {mismatch.ess:.3f} of the rows, limit {config.min_ess}: they are too far from "
            f"{start.version}; collect with it, lower max_staleness or min_ess, or use --force"
        )
    if reasons and not force:
        raise TrainingError("; ".join(reasons))
    return reasons
