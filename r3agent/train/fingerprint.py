"""Fingerprint of trained weights: logprobs of trained tokens under the new weights and under those before training.

The candidates are rows with large advantages, each of another group. After training, the fingerprint takes the
sequences and positions that best tell the two weights apart on a server with numerical noise. A long prompt is cut at
its beginning, so that the trained tokens stay inside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from r3agent.errors import TrainingError
from r3agent.store.registry import MAX_PROMPT, FingerprintSequence
from r3agent.train.grpo import OfflineGRPOTrainer
from r3agent.train.row import Row

MAX_CANDIDATES = 16
MAX_COMPLETION = 256
"""Tokens of a candidate after the end of its prompt: the beginning of its completion."""
MAX_SEQUENCES = 4
MAX_POSITIONS = 16
"""Positions of each sequence; a deploy sends one request for each."""


class Candidate(NamedTuple):
    """Sequence that may become part of the fingerprint."""

    token_ids_T: list[int]
    first: int
    """Position of the first trained token."""


def candidates(rows: Sequence[Row]) -> list[Candidate]:
    """Choose the rows with the largest advantages, one of each group."""
    by_advantage = sorted((-abs(row.advantage), i, row.group_id) for i, row in enumerate(rows))
    by_group: dict[str, int] = {}
    for _, i, group_id in by_advantage:
        by_group.setdefault(group_id, i)
    ends = (
        (row.prompt_ids_P[-MAX_PROMPT:], row.completion_ids_T[:MAX_COMPLETION])
        for row in map(rows.__getitem__, by_group.values())
    )
    found = (Candidate([*prompt, *completion], max(1, len(prompt))) for prompt, completion in ends)
    return [*islice((candidate for candidate in found if candidate.first < len(candidate.token_ids_T)), MAX_CANDIDATES)]


def candidate_logprobs(trainer: OfflineGRPOTrainer, chosen: Sequence[Candidate]) -> list[tuple[float, ...]]:
    """Compute log p(token t | tokens before t) of each candidate under the current weights; 0.0 at position 0."""
    pairs = [(token_ids_T[:1], token_ids_T[1:]) for token_ids_T, _ in chosen]
    return [(0.0, *logprobs) for logprobs in trainer.logprobs(pairs)]


def fingerprint(
    chosen: Sequence[Candidate], trained: Sequence[Sequence[float]], parent: Sequence[Sequence[float]]
) -> tuple[FingerprintSequence, ...]:
    """Make the fingerprint of the trained weights, together with that of their parent, for the card.

    Raises:
        TrainingError: the trained weights give logprobs that are not finite.
    """
    if not all(math.isfinite(logprob) for logprobs in trained for logprob in logprobs):
        raise TrainingError("the trained weights give logprobs that are not finite; lower learning_rate")
    best: list[tuple[float, int, list[int]]] = []
    for i, (candidate, new, old) in enumerate(zip(chosen, trained, parent, strict=True)):
        contrast = {t: _contrast(new[t], old[t]) for t in range(candidate.first, len(new))}
        positions = sorted(contrast, key=contrast.__getitem__, reverse=True)[:MAX_POSITIONS]
        best.append((sum(contrast[t] for t in positions), i, sorted(positions)))
    return tuple(
        FingerprintSequence(
            token_ids_T=tuple(chosen[i].token_ids_T),
            logprobs_T=tuple(trained[i]),
            parent_logprobs_T=tuple(parent[i]),
            positions_K=tuple(positions),
        )
        for _, i, positions in sorted(best, reverse=True)[:MAX_SEQUENCES]
    )


def _contrast(new: float, old: float) -> float:
    """Compare the change of a logprob with a server's noise, which grows with the token's surprise.

    In bfloat16, the bundled policy's logprobs are off by 0.006 nats where they are about -0.2, and by 0.05 below -1.
    """
    return abs(new - old) / (0.2 - min(old, 0.0))
