"""Are these rows the starting policy's? Recorded logprobs against those of the starting weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from r3agent.errors import TrainingError
from r3agent.train.batch import Row
from r3agent.train.config import TrainConfig
from r3agent.train.start import PolicyStart
from r3agent.trajectory import Record


class Mismatch(Record):
    """Gaps |recorded - recomputed| in nats over completion tokens. `None`: no row recorded any."""

    tokens: int
    """Tokens compared: of rows that the starting version sampled, or of all rows when it sampled none."""
    mean: float | None
    p99: float | None
    max: float | None
    ess: float | None
    """Effective sample size (Σw)² / Σw² as a share of the rows with recorded logprobs, w being a row's probability
    under the starting weights divided by the recorded one: 1 when the starting version sampled them all."""


def measure(rows: Sequence[Row], scores: Sequence[Sequence[float]], version: str) -> Mismatch:
    """Compare the rows' recorded logprobs with `scores`, those of the starting weights."""
    gaps = [
        (row, torch.tensor(row.logprobs_T) - torch.tensor(score_T))
        for row, score_T in zip(rows, scores, strict=True)
        if row.logprobs_T is not None
    ]
    if not gaps:
        return Mismatch(tokens=0, mean=None, p99=None, max=None, ess=None)
    own = [gap_T for row, gap_T in gaps if row.policy_version in (None, version)]
    compared = torch.cat(own or [gap_T for _, gap_T in gaps]).abs()
    log_weights = torch.stack([-gap_T.sum() for _, gap_T in gaps]).double()
    log_ess = 2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)
    return Mismatch(
        tokens=len(compared),
        mean=compared.mean().item(),
        p99=compared.sort().values[int(0.99 * (len(compared) - 1))].item(),
        max=compared.max().item(),
        ess=log_ess.exp().item() / len(gaps),
    )


def check(mismatch: Mismatch, config: TrainConfig, start: PolicyStart) -> None:
    """Refuse rows that are another policy's, or too far from the starting one.

    Raises:
        TrainingError: with the number, its limit and what to do.
    """
    if mismatch.mean is not None and not mismatch.mean <= config.max_mismatch:
        raise TrainingError(
            f"mean |logprob gap| = {mismatch.mean:.4f} over {mismatch.tokens} tokens, limit {config.max_mismatch}: "
            f"the rows were sampled by other weights, another chat template or another temperature scale than "
            f"{start.version} ({start.adapter or start.model}); train from the version that sampled them, "
            "or raise max_mismatch"
        )
    if mismatch.ess is not None and not mismatch.ess >= config.min_ess:
        raise TrainingError(
            f"effective sample size = {mismatch.ess:.3f} of the rows, limit {config.min_ess}: they are too far from "
            f"{start.version}; collect with it, lower max_staleness, or lower min_ess"
        )
