"""GRPO on recorded rows: TRL's `GRPOTrainer` with recorded data instead of generation.

Loss, metrics, optimizer, mixed precision, gradient accumulation and logging are TRL's, and `arguments` sets them. Six
things differ:

- A batch holds recorded tokens and advantages. Its ratio is relative to the starting policy, and its advantages are
  weighted by starting / *recorded* probability (`importance_cap`), as TRL does only where vLLM generates inside it;
  whatever a `rollout_func` returns, TRL takes for samples of the current policy.
- The KL reference is the starting policy, as in TRL for full weights and for an adapter that is trained further. Its
  logprobs of all rows are known before the first step, so no second copy of the model is needed. The estimate of a
  token's KL is s/p - log(s/p) - 1, with its probability p and that of the starting policy, s (k3). It is added to
  the loss without an importance weight: TRL's default multiplies it by the unclipped ratio.
- Rows of `distill` and `imitate` have the loss of log-likelihood. Their old and reference logprobs are the current
  ones. The ratio is 1 and never clipped, so the gradient of ratio · advantage is that of advantage · log π; and the KL
  is 0, which for a distilled row cannot be estimated: its tokens were sampled from another prompt.
- Every try of a step has the same weight, even if micro-batches differ in size. A row of a try that has several is
  weighted by its share of the try's sampled tokens: so are its advantages and, by `WeightedBeta`, its KL.
- `tool_mask` is 0 at tokens of a completion that were not sampled, such as the results of tools: as in TRL, they are
  computed and attended to, and are in no loss, ratio, KL or metric.
- The prompt that siblings share goes through the model once (`shared_prefix`), and micro-batches are split by tokens.

Logprobs are at temperature 1. Prompts are padded on the left, as in TRL; a model whose logprobs that changes computes
rows one at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from r3agent.errors import ConfigError
from r3agent.train.arguments import grpo_arguments
from r3agent.train.checkpoints import PREFIX, writing
from r3agent.train.collate import Costs, Epochs, MicroBatches, TrainingRows, blank_row, collate, collate_tokens
from r3agent.train.config import TrainConfig
from r3agent.train.row_file import column
from r3agent.train.shared_prefix import enable_sharing, pack, unpack
from r3agent.train.trial import padding_obstacle, trial_logprobs, trial_pairs
from r3agent.train.tries import WeightedBeta, tries_of, weights_of

logger = logging.getLogger(__name__)


class OfflineGRPOTrainer(GRPOTrainer):
    """GRPO trainer on a dataset of rows (`to_dataset`); call `score` or `start_from` before `train`."""

    model: Any
    args: GRPOConfig
    train_dataset: Any
    scores: Sequence[list[float] | None]
    in_loss: dict[str, Any] | None = None
    """Micro-batch whose loss is being computed; `None` outside the loss."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        rows: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        config: TrainConfig,
        output_dir: Path,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        inner = _without_adapter(model)
        expected = trial_logprobs(inner)
        costs = Costs(column(rows, "prompt_ids_P"), column(rows, "completion_ids_T"))
        longest_row = max(costs.prompt_tokens) + max(costs.completion_tokens)
        self.packs = config.share_prompt and enable_sharing(inner, longest_row)
        self.budget = config.micro_batch_tokens if self.packs or _pads(inner, longest_row) else 1
        costs.shares = self.packs
        processes = PartialState(cpu=not torch.accelerator.is_available())
        try_ids = tries_of(rows)
        self.batches = MicroBatches(
            [*column(rows, "group_id")],
            costs,
            batch_size=config.batch_size,
            budget=self.budget,
            epochs=config.epochs,
            seed=config.seed,
            rank=processes.process_index,
            processes=processes.num_processes,
            try_ids=try_ids,
        )
        super().__init__(
            model=model,
            reward_funcs=_recorded_rewards,
            args=grpo_arguments(config, self.batches, output_dir),
            train_dataset=rows,
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )
        self.weights = weights_of(rows, try_ids)
        self.remove_callback(PrinterCallback)
        self.beta = config.beta  # 0 in the arguments, or TRL would build a reference model
        self.config = config
        self.pad_id = cast(int, tokenizer.pad_token_id)
        self._refuse_another_head(inner, expected)

    # ---- before the first step ----

    def _refuse_another_head(self, model: PreTrainedModel, expected: Sequence[float]) -> None:
        """Refuse a model whose output head TRL, which does not call it, computes in another way than transformers."""
        found = [logprob for logprobs_T in self.logprobs(trial_pairs(model)) for logprob in logprobs_T]
        gap = max(abs(new - old) for new, old in zip(found, expected, strict=True))
        limit = 0.01 if self.config.dtype == "float32" else 0.25  # devices may differ, so more than `share` allows
        if not gap < limit:
            raise ConfigError(
                f"{type(model).__name__}: TRL computes other logprobs than transformers, by {gap:.2g} nats: its output "
                "head does more than TRL knows; choose another model"
            )

    def score(self) -> list[list[float]]:
        """Compute the logprobs of every row's completion under the current weights, and `start_from` them."""
        pairs = zip(*(column(self.train_dataset, name) for name in ("prompt_ids_P", "completion_ids_T")), strict=True)
        scores = self.logprobs([*pairs], divided=True)
        self.start_from(scores)
        return scores

    def start_from(self, scores: Sequence[list[float] | None]) -> None:
        """Set the starting policy's logprobs of every row; for a row that has none, they are the recorded ones.

        They are the KL reference, and serve as the recorded logprobs of rows that have none; in rows of `distill` and
        `imitate` they are placeholders.
        """
        self.scores = scores

    def logprobs(self, pairs: Sequence[tuple[list[int], list[int]]], *, divided: bool = False) -> list[list[float]]:
        """Compute the logprob of each completion token, for pairs of prompt ids and completion ids.

        Args:
            divided: divide the pairs among the processes; before training each of them has the whole model.
        """
        return self._scored(pairs, divided=divided, entropies=False)

    def entropies(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        """Compute the entropy at each completion token; the processes divide the pairs, before training."""
        return self._scored(pairs, divided=True, entropies=True)

    @torch.no_grad()
    def _scored(
        self, pairs: Sequence[tuple[list[int], list[int]]], *, divided: bool, entropies: bool
    ) -> list[list[float]]:
        self.model.eval()
        rank, processes = (self.accelerator.process_index, self.accelerator.num_processes) if divided else (0, 1)
        costs = Costs((prompt for prompt, _ in pairs), (completion for _, completion in pairs), shares=self.packs)
        found: list[tuple[int, list[float]]] = []
        for part in costs.parts(self.budget)[rank::processes]:
            rows: Any = [dict(zip(("prompt_ids_P", "completion_ids_T"), pairs[i], strict=True)) for i in part]
            tokens = collate_tokens(rows, self.pad_id)
            batch = {name: tensor.to(self.model.device) for name, tensor in tokens.items()}
            logprobs_BT, entropies_BT, _ = self._get_per_token_logps_and_entropies(
                self.model,
                torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
                torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
                batch["completion_ids"].size(1),
                compute_entropy=entropies,
            )
            values_BT = logprobs_BT if entropies_BT is None else entropies_BT
            for index, values_T in zip(part, values_BT.tolist(), strict=True):
                found.append((index, values_T[: costs.completion_tokens[index]]))
        return [values_T for _, values_T in sorted(gather_object(found) if divided else found)]

    def gather_weights(self) -> dict[str, torch.Tensor] | None:
        """Gather weights that are sharded over processes (FSDP, DeepSpeed); every process must call this."""
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            return None
        return cast(dict[str, torch.Tensor], self.accelerator.get_state_dict(self.model_wrapped))

    # ---- in place of TRL's generation ----

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Load this process's micro-batches of recorded rows; a blank row follows the last one."""
        rows: Any = TrainingRows(self.train_dataset, self.weights, self.scores, blank_row(self.pad_id))
        limits = self.config.model_dump(include={"importance_cap", "importance_mode"})
        collate_rows = partial(collate, pad_id=self.pad_id, **limits)
        return Epochs(rows, batch_sampler=self.batches, collate_fn=collate_rows)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], None]:
        """Draw the micro-batches of one optimizer step, and give each its share of the step's tries and tokens."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        local = [(b["weights"].sum(), b["tool_mask"].sum(), (b["rewards"] * b["weights"]).sum()) for b in batches]
        tries, tokens, rewards = self.accelerator.reduce(torch.tensor(local, device=device).sum(0))
        self._metrics["train"]["reward"].append((rewards / tries).item())
        self._metrics["train"]["tokens"].append(tokens.item())
        everywhere = len(batches) * self.accelerator.num_processes
        for batch in batches:
            batch["share"] = len(batch["advantages"]) * everywhere / tries
            # TRL expects the tokens of a generation batch, and uses this step's share of them
            batch["num_items_in_batch"] = tokens * cast(int, self.args.steps_per_generation) / len(batches)
        return batches, None

    def _prepare_inputs(self, generation_batch: dict[str, Any]) -> dict[str, Any]:
        """Skip TRL's generation: the batch is complete, so `Trainer` only moves it to the device."""
        return Trainer._prepare_inputs(self, generation_batch)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Compute TRL's loss; if it is a mean over a micro-batch's rows, weight it so that the step's is over tries."""
        if self.loss_type == "grpo":  # a mean over each row's tokens; the others divide by a constant
            weights_B, advantages = inputs["weights"], inputs["advantages"]
            inputs["advantages"] = weights_B.view(-1, *[1] * (advantages.dim() - 1)) * advantages
            self.beta = WeightedBeta(self.config.beta, weights_B)
        self.in_loss = inputs
        try:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        finally:
            self.in_loss = None
        return loss * inputs["share"] if self.loss_type in ("grpo", "dr_grpo") else loss

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Compute (B, T) logprobs and entropies of the last `logits_to_keep` tokens, with shared prompts if `packs`.

        In a loss, these are of sampled tokens only, and also the old and reference logprobs of rows that have neither.
        """
        labels_BT = attention_mask[:, -logits_to_keep:] if self.in_loss is None else self.in_loss["sampled"]
        if self.packs:
            packed = pack(input_ids, attention_mask, logits_to_keep, labels_BT)
            with self.accelerator.autocast():
                outputs = model(**packed._asdict(), fused_lm_head=True)
            logprobs_BT, aux_loss = unpack(outputs.log_probs, labels_BT), None
            entropies_BT = unpack(outputs.entropy, labels_BT) if compute_entropy else None
        else:
            logprobs_BT, entropies_BT, aux_loss = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **kwargs
            )
            logprobs_BT = logprobs_BT.masked_fill(labels_BT == 0, 0.0)  # as the old ones: a large ratio has no mask
        if self.in_loss is not None:
            rows_B, old_BT = self.in_loss["unweighted"], self.in_loss["old_per_token_logps"]
            for fixed_BT in (old_BT, self.in_loss["ref_per_token_logps"]):  # TRL reads them afterwards
                fixed_BT[rows_B] = logprobs_BT.detach()[rows_B].to(fixed_BT.dtype)
            ratios = (logprobs_BT.detach() - old_BT).exp()[self.in_loss["tool_mask"].bool()]
            total, tokens = self.accelerator.reduce(torch.stack([ratios.sum(), ratios.new_tensor(ratios.numel())]))
            if tokens:
                self._metrics["train"]["ratio"].append((total / tokens).item())
        return logprobs_BT, entropies_BT, aux_loss

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint, or the error of a disk that is full."""
        with writing(Path(str(self.args.output_dir)) / f"{PREFIX}{self.state.global_step}"):
            super()._save_checkpoint(model, trial)

    def _send_telemetry(self) -> None:
        """Send nothing."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write nothing: a checkpoint has no readme."""


def _pads(model: PreTrainedModel, longest_row: int) -> bool:
    """Return True if the model can compute padded rows together; otherwise log the reason."""
    reason = padding_obstacle(model, longest_row)
    if reason:
        logger.warning("rows are computed one at a time: %s", reason)
    return not reason


def _without_adapter(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    return cast(PreTrainedModel, model.get_base_model()) if isinstance(model, PeftModel) else model


def _recorded_rewards(**_: Any) -> list[float | None]:
    raise NotImplementedError("rewards come with the rows")
