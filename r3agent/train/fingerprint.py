"""The canary: a few fixed sequences and their logprobs, by which a server's weights are recognised."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from r3agent.errors import TrainingError
from r3agent.store.registry import CanarySequence
from r3agent.train.grpo import OfflineGRPOTrainer
from r3agent.train.row import Row

MAX_SEQUENCES = 4
MAX_TOKENS = 256


def canary_sequences(rows: Iterable[Row]) -> list[list[int]]:
    """Prompt and completion of one row of each of the shortest groups."""
    one_each = {row.group_id: [*row.prompt_ids_P, *row.completion_ids_T] for row in rows}
    return [ids[:MAX_TOKENS] for ids in sorted(one_each.values(), key=len)[:MAX_SEQUENCES]]


def canary_logprobs(trainer: OfflineGRPOTrainer, sequences: Sequence[list[int]]) -> list[tuple[float, ...]]:
    """For each sequence, log p(token t | tokens before t) under the weights as they are now; 0.0 at position 0."""
    return [(0.0, *logprobs) for logprobs in trainer.logprobs([(ids[:1], ids[1:]) for ids in sequences])]


def canary(
    sequences: Sequence[list[int]], trained: Sequence[tuple[float, ...]], parent: Sequence[tuple[float, ...]]
) -> tuple[CanarySequence, ...]:
    """The card's canary.

    Raises:
        TrainingError: the trained weights give logprobs that are not finite.
    """
    if not all(math.isfinite(logprob) for logprobs in trained for logprob in logprobs):
        raise TrainingError("the trained weights give logprobs that are not finite; lower learning_rate")
    return tuple(
        CanarySequence(token_ids_T=tuple(ids), logprobs_T=new, parent_logprobs_T=old)
        for ids, new, old in zip(sequences, trained, parent, strict=True)
    )
