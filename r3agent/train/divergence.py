"""End of a training whose numbers overflow."""

from __future__ import annotations

from math import isfinite
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from r3agent.errors import TrainingError
from r3agent.train.config import TrainConfig


class StopOnDivergence(TrainerCallback):
    """Callback that ends a training at the first loss or gradient that is not finite; all later weights would be NaN.

    The loss is tested too, because DeepSpeed replaces such a norm by a finite one.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs: dict[str, Any] = kwargs["logs"]
        found = {"loss": logs.get("loss"), "gradient": logs.get("grad_norm")}
        faults = [name for name, value in found.items() if value is not None and not isfinite(value)]
        if not faults:
            return
        remedies = ["set train.dtype = 'float32'"] if self.config.dtype == "bfloat16" else []
        if state.global_step > 1:  # a step has changed the weights
            remedies.insert(0, f"lower train.learning_rate = {self.config.learning_rate:g}")
        remedy = ", or ".join(remedies or ["start from other weights"])
        raise TrainingError(f"step {state.global_step} of {state.max_steps}: the {faults[0]} is not finite; {remedy}")
