"""Starting policy and settings of a training.

Docstrings quote the paper's values (arXiv 2505.24726) where it states them.
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
from r3agent.telemetry.services import Service
from r3agent.train.recipes import DEFAULT, Recipe, with_recipe


class PolicyStart(Record):
    """Weights of a policy version: a base model and optionally an adapter."""

    version: str
    name: str
    """Served name of the base model."""
    model: str
    """Directory or hub id of a causal language model with its tokenizer."""
    base_model: str | None = None
    """Name of `model` on the result's card, if it differs, so that the run can move to another machine."""
    adapter: Path | None = None
    """LoRA adapter of that model, which training continues."""

    @classmethod
    def of(cls, card: PolicyCard, directory: Path) -> PolicyStart:
        """Make the start from a card; its weights are in `directory`, unless it is the base model's."""
        checkpoint = Checkpoint.of(card, directory)
        return cls(
            version=card.version,
            name=card.name,
            base_model=checkpoint.model if card.kind == "full" else card.base_model,
            model=checkpoint.model,
            adapter=checkpoint.adapter_dir,
        )


class TrainConfig(Record):
    """Settings for training the policy on recorded spans."""

    # ---- what is trained ----

    method: Literal["lora", "full"] = "lora"
    """Train a LoRA adapter (`lora`) or all weights (`full`)."""
    lora_r: int = Field(default=16, ge=1)
    """Rank of a new adapter; an adapter that is trained further must already have this rank."""
    lora_alpha: int = Field(default=32, ge=1)
    """Scale of the adapter's updates: `lora_alpha / lora_r`."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input. It makes the importance ratio noisy; keep 0 unless the adapter overfits."""
    lora_target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the layers that get an adapter; the embeddings and the output head cannot have one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the computation. With bfloat16, the frozen weights under an adapter are bfloat16 too; trained
    weights stay float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them: less memory, about 20 % more time."""

    share_prompt: bool = True
    """Compute the prompt that siblings share once instead of once per row; the result is the same."""

    # ---- which rows ----

    recipe: Recipe = DEFAULT
    """Named choice of `credit`, `distill` and `imitate`, and of `credit_weights`, `leak`, `baseline` and
    `scale_rewards`: `paper` trains reflections alone (arXiv 2505.24726), `sft` imitates the tries that passed, e.g. as
    a warm-up, and `paper+sft` does both; `custom` is any other. One that is given counts more, and another value than
    the recipe's makes it `custom`. On the command line, `--recipe` replaces what the file says of all of these; with
    `--recipe custom` the file's values stay."""
    credit: dict[CreditLabel, RewardSource] = {"reflect": "retry_success"}
    """Span labels to train on, with the source of each one's reward. For `reflect`: `retry_success`, the success of its
    retries (the paper trains on nothing else); `retry_score`, their score; or `lift`, their success minus that of the
    blind retries. Siblings share the blind retries, so `lift` changes the reported rewards but not the preferred
    sibling. For `attempt`, `retry` and `blind_retry`: `success` or `score` of their own verdict. Siblings are compared,
    so collect several: see `reflections`, `retries`, `blind_retries` and `samples` of `[collect]`."""
    credit_weights: dict[CreditLabel, Annotated[float, Field(gt=0)]] = {}
    """Factors on the advantages of credited labels, e.g. `{retry = 0.5}`; the default is 1."""
    distill: float = Field(default=0.0, ge=0)
    """Weight of distilling a passed retry into its failed first try: (1 - mean success of the task's first tries) *
    log p(retry | prompt of the first try), from RLTF-SD (arXiv 2602.02482). 0 disables it, as in the paper."""
    imitate: float = Field(default=0.0, ge=0)
    """Weight of imitating tries that passed, each after its own prompt: weight * log p(try). It is 1 by the default
    recipe, and 0 disables it."""
    leak: Literal["keep", "drop", "penalise"] = "keep"
    """Treatment of a reflection that contains the answer of its own retry: `keep` rewards it like any other, `drop`
    leaves it out, `penalise` rewards it as if its retries had failed. It is counted in any case."""
    baseline: Literal["siblings", "batch"] = "siblings"
    """Reward that each reward is compared with: the mean of its `siblings`, or that of the same label over the other
    tasks of the training, corrected by the difficulty of its own task (`batch`). That needs no siblings: one try, or
    one reflection, of each task is enough."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Divide advantages by the standard deviation of rewards in the group (`group`), over all groups of the label
    (`batch`), or not at all (`none`, as in Dr. GRPO). As in TRL, `batch` includes groups of equal rewards, although
    these are not trained on. With `baseline = "batch"`, `group` is the same as `batch`."""
    max_staleness: int = Field(default=1, ge=0)
    """Drop rows sampled more than this many generations before the starting version: 1 is its parent, 2 the parent of
    that. Rows of a version that it does not descend from, such as a rejected one, are always dropped. With 1, a
    training uses the rows of the round before once more, although its start was trained on them; the report counts
    such rows as repeated. With 0, a training uses no row that its start or an ancestor was trained on; after a
    version that did not pass the gate, the next one starts from the same parent, and uses the rows of both rounds."""
    max_row_tokens: int = Field(default=4096, ge=2)
    """Drop tries with a longer row than this, prompt and completion together, tokens of tools included."""
    retokenise: Literal["refuse", "allow"] = "refuse"
    """Treatment of spans without recorded token ids: `refuse` drops them; `allow` tokenises their text with the
    policy's chat template and uses the starting weights' logprobs in place of recorded ones."""
    max_mismatch: float = Field(default=0.1, gt=0)
    """Limit of the mean |recorded - recomputed| logprob, in nats per token, over rows of the starting version."""
    min_ess: float = Field(default=0.5, ge=0, le=1)
    """Smallest effective sample size of the importance weights of tokens that other versions sampled, as a share of
    those tokens and relative to that of the starting version's own tokens, which is its server's rounding."""

    max_drift: float | None = Field(default=None, gt=0)
    """Limit of the trained policy's KL divergence from the base policy v0000, in nats per token: its sum over the
    vocabulary, averaged over the sampled tokens of up to 64 recorded rows. A training that exceeds it writes no
    version; `None` only reports it."""

    # ---- the loss: see `trl.GRPOConfig` ----

    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo"] = "grpo"
    """Method of averaging the losses of sampled tokens: over each try, then over tries (`grpo`), so that a try weighs
    as one however many steps and rows it has; over tries of the constant length `max_row_tokens` (`dr_grpo`); over the
    tokens of an optimizer step (`dapo`, `cispo`), so that a long try weighs more; or over those of a micro-batch
    (`bnpo`, whose result depends on `micro_batch_tokens`). `cispo` differs in the loss itself: a clipped ratio only
    weights the gradient of a token's logprob, so that no token is left out."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """Ratio of each token, or, as in GSPO, the geometric mean of a row's ratios for all its tokens. GSPO uses
    `loss_type = "grpo"` and clips at 3e-4 and 4e-4."""
    beta: float = Field(default=0.001, ge=0)
    """Weight of the KL divergence from the starting policy. The paper: 0.001."""
    epsilon_low: float = Field(default=0.2, gt=0, lt=1)
    """Clip the importance ratio from below at 1 - `epsilon_low`; `cispo` does not."""
    epsilon_high: float = Field(default=0.2, gt=0)
    """Clip the importance ratio from above at 1 + `epsilon_high`. For `cispo`, 4 is the limit
    of 5 that TRL recommends."""

    importance_cap: Annotated[float, Field(gt=0)] | Literal["none"] = 3.0
    """Cap of truncated importance sampling, as in TRL: the clipped ratio is current / starting policy, and every token
    has a weight, starting / recorded, which `importance_mode` limits to the cap. With `none`, the clipped ratio is
    current / recorded, so that tokens of an older version may be outside the clip range from the start."""
    importance_mode: Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = "token_truncate"
    """Weights under `importance_cap`: of each token, or the product over the row for all its tokens. One above the cap
    becomes the cap (`truncate`) or 0 (`mask`). Over long rows, a product is far from 1 even if tokens differ little."""

    # ---- the optimizer ----

    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate. The paper: 5e-7, over up to 1,750 steps."""
    lr_scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate schedule after the warmup. The paper: cosine."""
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps for the linear warmup from 0. The paper: 0.03."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the rows; in all of them the importance ratio is relative to the recorded logprobs."""
    batch_size: int = Field(default=256, ge=1)
    """Maximum number of tries, or reflections, per optimizer step, each with all of its rows; they are divided evenly
    among steps. The paper: 256."""
    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Maximum number of tokens in one forward pass, counting a shared prompt once; lower it to save memory. A larger
    group is computed in parts that repeat the prompt, and a larger row on its own."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Clip gradients to this norm."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    save_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps between checkpoints, from which `--resume` continues; `None` saves one only when interrupted.
    While one is written, the one before is kept."""
    report_to: Service = "none"
    """Service that gets the metrics of each step of a training without a run, in addition to `steps.jsonl` in the
    version's directory. In a run, `telemetry.report_to` is the setting for all stages; this one counts if that is
    `none`."""
    seed: int = Field(default=0, ge=0)
    """Seed for a new adapter's weights, the order of rows, and dropout."""

    @model_validator(mode="before")
    @classmethod
    def _follow_recipe(cls, settings: Any) -> Any:
        return with_recipe(cast(Mapping[str, Any], settings)) if isinstance(settings, Mapping) else settings

    @field_validator("importance_cap", mode="before")
    @classmethod
    def _none_is_a_word(cls, cap: Any) -> Any:
        return "none" if cap is None else cap  # TOML has no null

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
        if not (self.credit or self.distill or self.imitate):
            raise ValueError(
                "credit = {}: nothing would be trained on; name a label, or set distill or imitate above 0"
            )
        if idle := [label for label in self.credit_weights if label not in self.credit]:
            raise ValueError(f"credit_weights has {', '.join(idle)}: not in credit = {self.credit}; add it there")
        return self

    @model_validator(mode="after")
    def _everything_has_an_effect(self) -> TrainConfig:
        if not self.credit:
            for name, default in (("baseline", "siblings"), ("scale_rewards", "group")):
                if (value := getattr(self, name)) != default:
                    raise ValueError(
                        f"{name} = {value!r}: credit = {{}}, so no rewards are compared; credit a label, or remove "
                        f"{name}"
                    )
        return self
