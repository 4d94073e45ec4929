"""Distance of a trained policy from the base policy, v0000, which KL to each round's start does not limit."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import chain

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from r3agent.errors import ConfigError, TrainingError
from r3agent.records.trajectory import Record
from r3agent.records.versions import BASE
from r3agent.train.config import PolicyStart, TrainConfig
from r3agent.train.grpo import OfflineGRPOTrainer
from r3agent.train.row import Row

logger = logging.getLogger(__name__)

SAMPLE = 64
"""Largest number of rows to measure on."""


class Drift(Record):
    """KL divergence from the base policy over sampled tokens of a sample of the rows."""

    rows: int
    tokens: int
    kl: float
    """Mean of b/p - log(b/p) - 1 in nats, where p is a token's probability and b that under the base policy."""


class DriftMeter:
    """Measure of drift; construct it before the first step, when the model still has the starting weights.

    Adapters are switched off for the base policy's logprobs. If they are part of the model, or the start has full
    weights of its own, the base model is loaded once, and dropped before training needs its memory.

    Raises:
        ConfigError: there is a limit, and the base policy is unknown or cannot be loaded.
    """

    def __init__(
        self,
        trainer: OfflineGRPOTrainer,
        rows: Sequence[Row],
        *,
        start: PolicyStart,
        base: str | None,
        limit: float | None,
    ) -> None:
        own = [i for i, row in enumerate(rows) if row.label != "distill"]  # distilled tokens are of another prompt
        own = own or range(len(rows))
        chosen = [rows[i] for i in own[:: -(-len(own) // SAMPLE)]]
        self.trainer, self.version = trainer, start.version
        self.rows, self.pairs = chosen, [(row.prompt_ids_P, row.completion_ids_T) for row in chosen]
        self.base: list[list[float]] | None = None
        try:
            self.base = self._base_logprobs(start, base)
        except (OSError, ValueError) as error:
            if limit is not None:
                raise ConfigError(
                    f"max_drift = {limit}: {BASE}, the base of {start.version}, cannot be loaded: {error}; put its "
                    "weights back, or remove max_drift"
                ) from error
            logger.warning("drift from %s is not measured: %s", BASE, error)

    def _base_logprobs(self, start: PolicyStart, base: str | None) -> list[list[float]]:
        model = self.trainer.model
        if base is None:
            raise ValueError("no card names its model")
        if base == start.model and (start.adapter is None or isinstance(model, PeftModel)):
            with model.disable_adapter() if isinstance(model, PeftModel) else nullcontext():
                return self.trainer.logprobs(self.pairs, divided=True)
        loaded = AutoModelForCausalLM.from_pretrained(base, dtype=model.dtype).to(model.device).eval()
        return [_logprobs(loaded, prompt, completion) for prompt, completion in self.pairs]

    def measure(self) -> Drift | None:
        """Measure the drift of the current weights; `None` without the base policy. Every process must call this."""
        trained = self.trainer.logprobs(self.pairs)
        if self.base is None:
            return None
        base_K, trained_K = (
            torch.tensor([*chain(*map(Row.sampled, self.rows, logprobs))]) for logprobs in (self.base, trained)
        )
        gap = base_K - trained_K
        return Drift(rows=len(self.pairs), tokens=len(gap), kl=(gap.exp() - gap - 1).mean().item())


@torch.no_grad()
def _logprobs(model: torch.nn.Module, prompt: list[int], completion: list[int]) -> list[float]:
    ids = torch.tensor([[*prompt, *completion]], device=next(model.parameters()).device)
    logits_TV = model(input_ids=ids, logits_to_keep=len(completion) + 1).logits[0, :-1]
    return logits_TV.float().log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])[:, 0].tolist()


def check_drift(drift: Drift | None, config: TrainConfig, version: str) -> None:
    """Refuse weights that are too far from the base policy.

    Raises:
        TrainingError: the drift is above `max_drift`.
    """
    if drift is not None and config.max_drift is not None and not drift.kl <= config.max_drift:
        raise TrainingError(
            f"KL to {BASE} = {drift.kl:.4f} nats per token over {drift.rows} rows, max_drift = {config.max_drift}: "
            f"{version} is not written; lower learning_rate or epochs, raise beta, start from an earlier version, or "
            "raise max_drift"
        )
