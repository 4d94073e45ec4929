"""Starting policy and settings of a training.

Values that the paper (arXiv 2505.24726) states are noted; it leaves the others open.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field, field_validator, model_validator

from r3agent.records.credit import CreditLabel, RewardSource, check_label, check_source
from r3agent.records.trajectory import Record
from r3agent.store.checkpoint import Checkpoint
from r3agent.store.registry import PolicyCard


class PolicyStart(Record):
    """A policy version as weights: a base model, and an adapter on it or none."""

    version: str
    name: str
    """Served name of the base model."""
    model: str
    """Directory or hub id of a causal language model with its tokenizer."""
    base_model: str | None = None
    """`model` as the card of the result names it, where a run that moves to another machine needs that."""
    adapter: Path | None = None
    """A LoRA adapter of that model; it goes on from itself."""

    @classmethod
    def of(cls, card: PolicyCard, directory: Path) -> PolicyStart:
        """Make the start from a card, whose weights (unless it is the base) are in `directory`."""
        checkpoint = Checkpoint.of(card, directory)
        return cls(
            version=card.version,
            name=card.name,
            base_model=checkpoint.model if card.kind == "full" else card.base_model,
            model=checkpoint.model,
            adapter=checkpoint.adapter_dir,
        )


class TrainConfig(Record):
    """Settings by which recorded spans become an update of the policy."""

    # ---- what is trained ----

    method: Literal["lora", "full"] = "lora"
    """Train a LoRA adapter, or all weights."""
    lora_r: int = Field(default=16, ge=1)
    """Rank of a new adapter; an adapter that goes on from itself must have this rank already."""
    lora_alpha: int = Field(default=32, ge=1)
    """Updates are scaled by `lora_alpha / lora_r`."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout in front of the adapter; it makes the importance ratio noisy, so 0 unless the adapter overfits."""
    lora_target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the layers that get an adapter. The output head cannot have one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the computation. bfloat16 is also that of frozen weights under an adapter, not of trained ones."""
    gradient_checkpointing: bool = False
    """Compute activations a second time instead of keeping them: less memory, about 20 % more time."""

    share_prompt: bool = True
    """Compute the prompt that siblings share once, not once for each; the result is the same."""

    # ---- which rows ----

    credit: dict[CreditLabel, RewardSource] = {"reflect": "retry_success"}
    """Labels whose tokens are trained on, and the source of their reward. `reflect`: `retry_success`, the success of
    its retries (the paper, which trains on nothing else), `retry_score`, or `lift`, that success minus that of blind
    retries: siblings share these, so it changes the reported rewards, not which sibling is favoured. `attempt`,
    `retry` and `blind_retry`: `success` or `score`, of their own verdict. Siblings are compared, so there must be some:
    see `reflections`, `retries`, `blind_retries` and `samples` of `[collect]`."""
    credit_weights: dict[CreditLabel, Annotated[float, Field(gt=0)]] = {}
    """Factors of the advantages of credited labels, e.g. `{retry = 0.5}`; 1 by default."""
    distill: float = Field(default=0.0, ge=0)
    """Weight of pushing a retry that passed back into the failed first try: (its success - the mean of the task's
    first tries) * log p(retry | prompt of the first try). 0 leaves it out, as the paper does."""
    leak: Literal["keep", "drop", "penalise"] = "keep"
    """Treatment of a reflection that contains the answer of its own retry: paid like any other, dropped, or paid as if
    its retries had failed. It is counted all the same."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Divide advantages by the standard deviation of rewards in the group, among all rows of the label, or not at all
    (Dr. GRPO)."""
    max_staleness: int = Field(default=1, ge=0)
    """Rows sampled by a policy more than this many versions away from the starting one are dropped."""
    max_row_tokens: int = Field(default=4096, ge=2)
    """Rows with more tokens, prompt and completion together, are dropped."""
    retokenise: Literal["refuse", "allow"] = "refuse"
    """Treatment of spans whose token ids were not recorded: drop them, or tokenise their text with the policy's own
    chat template and take the starting weights' logprobs for the recorded ones."""
    max_mismatch: float = Field(default=0.1, gt=0)
    """Limit of the mean |recorded - recomputed| logprob, in nats per token, over rows of the starting version."""
    min_ess: float = Field(default=0.2, ge=0, le=1)
    """Floor of the effective sample size of the rows' importance weights, as a share of the rows."""

    # ---- the loss: see `trl.GRPOConfig` ----

    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo"] = "grpo"
    """Average of token losses. `bnpo` averages over the tokens of a micro-batch, so its result depends on
    `micro_batch_tokens`; the others do not."""
    beta: float = Field(default=0.001, ge=0)
    """Weight of the KL divergence from the starting policy. The paper: 0.001."""
    epsilon_low: float = Field(default=0.2, gt=0, lt=1)
    """The importance ratio is clipped below at 1 - `epsilon_low`."""
    epsilon_high: float = Field(default=0.2, gt=0)
    """The importance ratio is clipped above at 1 + `epsilon_high`."""

    importance_cap: float | None = Field(default=None, gt=0)
    """`None`: the clipped ratio is current / recorded, so rows of an older version may be clipped from the start. A
    number: the clipped ratio is current / starting policy, and every token weighs min(starting / recorded, the number),
    which is truncated importance sampling, as TRL does for vLLM with 3.0."""

    # ---- the optimizer ----

    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak of the schedule. The paper: 5e-7, over up to 1,750 steps."""
    lr_scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    """Schedule after the warmup. The paper: cosine."""
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from 0. The paper: 0.03."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the rows; the importance ratio stays relative to the recorded logprobs in all of them."""
    batch_size: int = Field(default=256, ge=1)
    """Rows for one optimizer step; steps share the rows evenly. The paper: 256."""
    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Tokens in one forward pass, a shared prompt counted once; the lower, the less memory. A group that has more is
    computed in parts that repeat the prompt; a row that has more, alone."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of AdamW."""
    save_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps between two checkpoints, from which `--resume` goes on; `None`: only when interrupted."""
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """Service that gets the log of the steps from transformers, besides `steps.jsonl` in the version's directory;
    tensorboard writes into `TENSORBOARD_LOGGING_DIR`."""
    seed: int = Field(default=0, ge=0)
    """Seed of a new adapter's weights, the order of the rows and dropout."""

    @field_validator("credit", mode="before")
    @classmethod
    def _sources_fit(cls, credit: Any) -> Any:
        if isinstance(credit, Mapping):
            for label, source in cast(Mapping[Any, Any], credit).items():
                check_source(str(label), str(source))
        return credit

    @field_validator("credit_weights", mode="before")
    @classmethod
    def _labels_exist(cls, weights: Any) -> Any:
        if isinstance(weights, Mapping):
            for label in cast(Mapping[Any, Any], weights):
                check_label(str(label))
        return weights

    @model_validator(mode="after")
    def _something_is_credited(self) -> TrainConfig:
        if not self.credit and not self.distill:
            raise ValueError("credit = {}: nothing would be trained on; name a label, or set distill above 0")
        if idle := [label for label in self.credit_weights if label not in self.credit]:
            raise ValueError(f"credit_weights has {', '.join(idle)}: not in credit = {self.credit}; add it there")
        return self
