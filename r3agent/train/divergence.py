"""End of a training whose numbers overflow."""

from __future__ import annotations

from math import isfinite
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from r3agent.errors import TrainingError
from r3agent.train.config import TrainConfig


class StopOnDivergence(TrainerCallback):
    """Callback that ends a training at the first gradient that is not finite; all later weights would be NaN."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        norm: float | None = kwargs["logs"].get("grad_norm")
        if norm is None or isfinite(norm):
            return
        if state.global_step > 1 or self.config.dtype == "float32":
            remedy = f"lower train.learning_rate = {self.config.learning_rate:g}"
        else:  # no step has changed the weights
            remedy = "set train.dtype = 'float32'"
        raise TrainingError(f"step {state.global_step} of {state.max_steps}: the gradient is not finite; {remedy}")
