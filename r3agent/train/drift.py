"""Distance of a trained policy from the base policy, v0000, which KL to each round's start does not limit."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from math import fsum
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from r3agent.errors import ConfigError, R3Error, TrainingError
from r3agent.records.trajectory import Record
from r3agent.records.versions import BASE
from r3agent.train.base import loading, n_embeddings, one_line, read_config
from r3agent.train.collate import Costs, collate_tokens
from r3agent.train.config import PolicyStart, TrainConfig
from r3agent.train.grpo import OfflineGRPOTrainer
from r3agent.train.row import Row
from r3agent.train.shared_prefix import pack, share

logger = logging.getLogger(__name__)

SAMPLE = 64
"""Largest number of rows to measure on."""

LOGITS = 2**26
"""Largest number of logits of each model that are computed at once: 256 MiB in float32."""


class Drift(Record):
    """KL divergence of the trained policy from the base policy, at the sampled tokens of some recorded rows.

    The policies that recorded the rows sampled what comes before each position; the trained policy might write
    something else.
    """

    rows: int
    tokens: int
    """Sampled tokens of the rows."""
    kl: float
    """Mean over the tokens of KL(trained || base) in nats: the sum of p (log p - log b) over the vocabulary, where p is
    the trained policy's probability at the token's position, and b the base policy's."""


class Piece(NamedTuple):
    """Part of a row, whose earlier part is its prompt; a mapping of it has the names of `collate_tokens`."""

    prompt_ids_P: list[int]
    completion_ids_T: list[int]
    sampled_T: list[bool]


def pieces(row: Row, tokens: int) -> Iterator[Piece]:
    """Cut a row into pieces whose completions have at most `tokens` tokens; those that nothing sampled are left out."""
    ids, sampled_T = [*row.prompt_ids_P, *row.completion_ids_T], row.sampled_T or [True] * len(row.completion_ids_T)
    for first in range(len(row.prompt_ids_P), len(ids), tokens):
        mask_T = sampled_T[first - len(row.prompt_ids_P) :][:tokens]
        if any(mask_T):
            yield Piece(ids[:first], ids[first : first + tokens], mask_T)


class DriftMeter:
    """Measure of drift; construct it before the first step, so that a drift that cannot be measured costs no training.

    Adapters are switched off for the base policy. If they are part of the model, or all weights are trained, the base
    model is loaded after the training, by each process, where the model was before it; gradients need no memory then.

    Args:
        base: directory or hub id of the base policy's weights; `None` if it is unknown.
        limit: limit of the drift; `None` only reports it.
        logits: limit of the logits of each model that are computed at once.

    Raises:
        ConfigError: there is a limit, and the drift cannot be measured.
    """

    def __init__(
        self,
        trainer: OfflineGRPOTrainer,
        rows: Sequence[Row],
        *,
        start: PolicyStart,
        base: str | None,
        limit: float | None,
        logits: int = LOGITS,
    ) -> None:
        own = [i for i, row in enumerate(rows) if row.label != "distill"]  # distilled tokens are of another prompt
        own = own or range(len(rows))
        chosen = [rows[i] for i in own[:: -(-len(own) // SAMPLE)]]
        self.trainer, self.start, self.limit = trainer, start, limit
        self.rows, self.tokens = len(chosen), max(1, logits // n_embeddings(trainer.model))
        self.pieces = [piece for row in chosen for piece in pieces(row, self.tokens)]
        model = trainer.model
        self.dtype, self.device = model.dtype, model.device
        self.adapted = model if isinstance(model, PeftModel) and base == start.model else None
        """Model whose adapters are switched off for the base policy; `None` if it must be loaded."""
        self.base = base
        try:
            if base is None:
                raise ValueError("no card names its model")
            if self.adapted is None:
                _load(base, device_map="meta")  # reads everything but the weights
            self._table(model, self.pieces[:1], packs=trainer.packs)
        except Exception as error:  # an unknown model may fail in any way
            self.base = None
            self._give_up(_reason(error), ConfigError)

    def _give_up(self, reason: str, kind: type[R3Error]) -> None:
        """Log the reason that the drift is not measured, or raise it if there is a limit."""
        if self.limit is not None:
            raise kind(
                f"max_drift = {self.limit}: KL to {BASE}, the base of {self.start.version}, cannot be measured: "
                f"{reason}; mend that, or remove max_drift"
            )
        logger.warning("drift from %s is not measured: %s", BASE, reason)

    def measure(self) -> Drift | None:
        """Measure the drift of the current weights; every process must call this.

        Returns:
            The drift; `None` without the base policy.

        Raises:
            TrainingError: there is a limit, and the base policy can no longer be loaded.
        """
        if self.base is None:
            return None
        model, packs = self.trainer.model, self.trainer.packs
        loaded, fault = self._loaded(self.base) if self.adapted is None else (None, None)
        if fault := next(filter(None, gather_object([fault])), None):
            self._give_up(fault, TrainingError)
            return None
        alike = loaded is None or not packs or share(loaded, max(len(p) + len(c) for p, c, _ in self.pieces)) is None
        rank, processes = self.trainer.accelerator.process_index, self.trainer.accelerator.num_processes
        found: list[tuple[int, float]] = []
        for i, part in enumerate(self._parts(self.trainer.budget if alike else 1)):
            own, base_KV = i % processes == rank, None
            trained_KV = self._table(model, part, packs=packs)  # sharded weights need every process
            if self.adapted is not None:
                with self.adapted.disable_adapter():
                    base_KV = self._table(model, part, packs=packs)
            elif own:
                base_KV = self._table(loaded, part, packs=packs and alike)
            if own and base_KV is not None:
                kl_K = (trained_KV.exp() * (trained_KV - base_KV.to(trained_KV.device))).sum(-1)
                found.append((i, kl_K.double().sum().item()))
        tokens = sum(sum(piece.sampled_T) for piece in self.pieces)
        return Drift(rows=self.rows, tokens=tokens, kl=fsum(kl for _, kl in gather_object(found)) / tokens)

    def _loaded(self, base: str) -> tuple[PreTrainedModel | None, str | None]:
        """Load the base policy; return it, or the reason that it cannot be loaded."""
        try:
            return _load(base, dtype=self.dtype).to(self.device), None
        except Exception as error:  # also if it does not fit into the accelerator's memory
            return None, _reason(error)

    def _parts(self, budget: int) -> Iterator[list[Piece]]:
        """Yield the pieces that are computed together."""
        costs = Costs(
            (piece.prompt_ids_P for piece in self.pieces),
            (piece.completion_ids_T for piece in self.pieces),
            shares=self.trainer.packs,
        )
        for part in costs.parts(budget):
            n = self.tokens // max(costs.completion_tokens[i] for i in part)
            yield from ([self.pieces[i] for i in part[first : first + n]] for first in range(0, len(part), n))

    @torch.no_grad()
    def _table(self, model: Any, part: Sequence[Piece], *, packs: bool) -> torch.Tensor:
        """Compute the logprobs of the whole vocabulary (K, V) at the K sampled tokens of some pieces.

        Args:
            packs: the model accepts packed sequences only, as `share` makes it do.
        """
        model.eval()
        tokens = collate_tokens([piece._asdict() for piece in part], self.trainer.pad_id)
        ids, mask = (
            torch.cat([tokens[f"prompt_{name}"], tokens[f"completion_{name}"]], dim=1).to(model.device)
            for name in ("ids", "mask")
        )
        width = tokens["completion_ids"].size(1)
        sampled = [piece.sampled_T + [False] * (width - len(piece.sampled_T)) for piece in part]
        sampled_BT = torch.tensor(sampled, device=ids.device)
        with self.trainer.accelerator.autocast():
            if packs:
                inputs: dict[str, Any] = pack(ids, mask, width, sampled_BT)._asdict()
                del inputs["shift_labels"]
                logits_KV = model(**inputs, use_cache=False).logits[0]
            else:
                inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
                can_skip = "logits_to_keep" in inspect.signature(inner.forward).parameters
                kept = {"logits_to_keep": width + 1} if can_skip else {}
                logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **kept).logits
                logits_KV = logits[:, -width - 1 : -1][sampled_BT]
        return logits_KV.float().log_softmax(-1)


def _load(base: str, **options: Any) -> PreTrainedModel:
    policy = PolicyStart(version=BASE, name=base, model=base)
    with loading(policy):
        return AutoModelForCausalLM.from_pretrained(base, config=read_config(policy, TrainConfig()), **options)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, R3Error) else one_line(error)


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
