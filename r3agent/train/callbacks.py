"""What training does between optimizer steps: tell, and stop when it is asked to."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from r3agent.errors import TrainingInterrupted

Progress: TypeAlias = Callable[[str, Mapping[str, Any]], None]
"""Told of each stage as it ends: `rows`, `mismatch`, every `step`, `saved`; with what is known of it."""


class StepProgress(TrainerCallback):
    """Tells of each optimizer step what TRL logs of it, with its speed and the seconds that are left."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.began = self.ended = 0.0
        self.first = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.began = self.ended = time.perf_counter()
        self.first = state.global_step

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs: dict[str, Any] = kwargs["logs"]
        if "loss" not in logs:
            return
        now = time.perf_counter()
        pace = {
            "tokens_per_s": logs["tokens"] / (now - self.ended),
            "seconds_left": (now - self.began)
            / (state.global_step - self.first)
            * (state.max_steps - state.global_step),
        }
        self.ended = now
        self.progress("step", {"step": state.global_step, "steps": state.max_steps, **logs, **pace})


class StopWhenAsked(TrainerCallback):
    """SIGTERM or Ctrl-C lets the step end, saves a checkpoint and stops; a second one stops a single process at once.

    Several processes agree on it after every step, since not all of them may have heard it before that step's end.
    Their launcher repeats what it hears, so there a second signal says nothing.
    """

    def __init__(self) -> None:
        self.asked = False
        self.accelerator: Accelerator | None = None

    @contextmanager
    def listening(self, accelerator: Accelerator) -> Generator[None]:
        """Inside, signals are heard here.

        Raises:
            TrainingInterrupted: at the end, if training stopped for one.
        """
        self.accelerator = accelerator
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread hears signals
            return
        before = {number: signal.signal(number, self._hear) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.asked:
            raise TrainingInterrupted

    def _hear(self, *_: object) -> None:
        assert self.accelerator is not None
        if self.asked and self.accelerator.num_processes == 1:
            raise KeyboardInterrupt
        self.asked = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert self.accelerator is not None
        heard: Any = torch.tensor(float(self.asked), device=self.accelerator.device)
        agreed: Any = self.accelerator.reduce(heard)
        self.asked = agreed.item() > 0
        if self.asked:
            control.should_save = control.should_training_stop = True
