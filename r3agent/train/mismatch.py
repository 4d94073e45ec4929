"""Comparison of the rows' recorded logprobs with those of the starting weights."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import TypeAlias

import torch

from r3agent.errors import TrainingError
from r3agent.records.trajectory import Record
from r3agent.train.collate import importance_weights
from r3agent.train.config import PolicyStart, TrainConfig
from r3agent.train.row import WITHOUT_SIBLINGS, Row, RowLabel
from r3agent.train.row_file import Pairs
from r3agent.train.surprise import LIMIT, Surprise

Scores: TypeAlias = list[list[float]]
"""Logprobs of all completion tokens of rows."""
Score: TypeAlias = Callable[[Sequence[tuple[list[int], list[int]]]], Scores]
"""Function that computes logprobs for pairs of prompt ids and completion ids."""

SAMPLE = 64
"""Smallest number of rows of each label that are scored; it is at least a tenth of them."""

CLOSE_MEAN, CLOSE_ROW = 0.01, 0.05
"""Limits in nats of the mean |recorded - recomputed| logprob, over the sample and over each of its rows, up to which
recorded logprobs stand in for scores of the rows outside it."""


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
    """Effective sample size (Σw)² / Σw² as a share of the tokens, where w is a token's importance weight in the loss,
    times the share of tokens below `importance_cap`; over rows that other versions sampled, or over all rows if there
    are none."""
    noise_ess: float | None = None
    """The same over rows that the starting version sampled: the effect of its server's rounding; `None` if it sampled
    none."""
    scored: int = 0
    """Rows with recorded logprobs whose logprobs were also recomputed; only these are compared."""
    surprise: Surprise | None = None
    """Test of the doubtful rows that the starting version sampled; `None` if there are none."""


def score_rows(rows: Sequence[Row], version: str, score: Score) -> list[list[float] | None]:
    """Score the rows with the starting weights, or only a sample of those that the starting version sampled.

    If the sample's scores are close to the recorded logprobs, these can stand in for the scores of the other rows.

    Returns:
        The scores; `None` for rows outside a sample that was close.
    """
    spared = _spared(rows, version)
    scores: list[list[float] | None] = [None] * len(rows)

    def fill(indices: Sequence[int]) -> None:
        for i, score_T in zip(indices, score(Pairs(rows, indices)), strict=True):
            scores[i] = score_T

    fill([i for i in range(len(rows)) if i not in spared])
    if spared and not _close(rows, scores, version):
        fill(sorted(spared))
    return scores


def _spared(rows: Sequence[Row], version: str) -> set[int]:
    """Choose the rows of the starting version that need no score: all but a sample from as many groups as possible."""
    labels: dict[str, list[tuple[int, str]]] = {}
    for i, row in enumerate(rows):
        if row.policy_version == version and row.logprobs_T is not None:
            labels.setdefault(row.label, []).append((i, row.group_id))
    spared: set[int] = set()
    for label, own in labels.items():
        random.Random(label).shuffle(own)
        turns: Counter[str] = Counter()  # the first row of each group, then the second of each, ...
        by_turn: list[tuple[int, int]] = []
        for i, group_id in own:
            by_turn.append((turns[group_id], i))
            turns[group_id] += 1
        spared.update(i for _, i in sorted(by_turn, key=itemgetter(0))[max(SAMPLE, len(own) // 10) :])
    return spared


def _close(rows: Sequence[Row], scores: Sequence[list[float] | None], version: str) -> bool:
    own = [gap_T.abs() for _, sampled_by, gap_T in _gaps(rows, scores) if sampled_by == version]
    return torch.cat(own).mean().item() <= CLOSE_MEAN and all(gap_T.mean().item() <= CLOSE_ROW for gap_T in own)


def _gaps(
    rows: Sequence[Row], scores: Sequence[Sequence[float] | None]
) -> list[tuple[RowLabel, str | None, torch.Tensor]]:
    """Subtract scores from recorded logprobs at the sampled tokens, in the rows that have both.

    Returns:
        The row's label, its policy version and the differences.
    """
    return [
        (
            row.label,
            row.policy_version,
            torch.tensor(row.sampled(row.logprobs_T)) - torch.tensor(row.sampled(score_T)),
        )
        for row, score_T in zip(rows, scores, strict=True)
        if row.logprobs_T is not None and score_T is not None
    ]


def measure(
    rows: Sequence[Row], scores: Sequence[Sequence[float] | None], version: str, config: TrainConfig
) -> Mismatch:
    """Compare the rows' recorded logprobs with `scores`, those of the starting weights."""
    # What is imitated may be of any version: its loss has no importance weight.
    gaps = [gap for gap in _gaps(rows, scores) if gap[0] not in WITHOUT_SIBLINGS or gap[1] in (None, version)]
    if not gaps:
        return Mismatch(gap=None, labels={}, ess=None)
    own = [gap for gap in gaps if gap[1] in (None, version)]
    others = [gap_T for _, sampled_by, gap_T in gaps if sampled_by not in (None, version)]
    labels: dict[str, list[torch.Tensor]] = {}
    for label, _, gap_T in own or gaps:
        labels.setdefault(label, []).append(gap_T)
    noise_ess = _ess([gap_T for *_, gap_T in own], config) if own else None
    return Mismatch(
        gap=_gap([gap_T for *_, gap_T in own or gaps]),
        labels={label: _gap(gaps_T) for label, gaps_T in labels.items()},
        ess=_ess(others, config) if others else noise_ess,
        noise_ess=noise_ess,
        scored=len(gaps),
    )


def _ess(gaps: Sequence[torch.Tensor], config: TrainConfig) -> float:
    """Compute the effective sample size, in which tokens whose weight is the cap do not count.

    If every weight is the cap, they are equal, but the rows are no sample of the starting policy.
    """
    cap = math.inf if config.importance_cap == "none" else config.importance_cap
    weights = [
        importance_weights(-gap_T[None].double(), cap, config.importance_mode).expand(1, len(gap_T)) for gap_T in gaps
    ]
    weights_T = torch.cat(weights, dim=1)
    ess = weights_T.sum().square() / weights_T.square().sum() / weights_T.numel()
    return (ess * (weights_T < cap).double().mean()).nan_to_num().item()


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
    if mismatch.ess is not None and not mismatch.ess >= config.min_ess * (mismatch.noise_ess or 1.0):
        noise = f", {mismatch.noise_ess:.3f} for its own" if mismatch.noise_ess else ""
        reasons.append(
            f"effective sample size = {mismatch.ess:.3f} of the tokens that other versions sampled{noise}, limit "
            f"{config.min_ess}: they are too far from {start.version}; collect with it, lower max_staleness or "
            "min_ess, or use --force"
        )
    if (surprise := mismatch.surprise) is not None and surprise.is_off:
        reasons.append(
            f"surprise = {surprise.ratio:.2f} ± {surprise.error:.2f} times the entropy over {surprise.rows} rows whose "
            f"requests left sampling settings to the server, limit {1 - LIMIT:.2f} to {1 + LIMIT:.2f}: it does not "
            "sample as its logprobs say, e.g. with top_k of the model's generation config; start it with "
            "--generation-config vllm, or send temperature = 1, top_p = 1 and no top_k, and record anew (r3agent "
            "doctor tests the server), or use --force"
        )
    if reasons and not force:
        raise TrainingError("; ".join(reasons))
    return reasons
