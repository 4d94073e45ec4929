"""End of a training at a signal, with a checkpoint."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from r3agent.errors import TrainingInterrupted
from r3agent.train.checkpoints import PREFIX

logger = logging.getLogger(__name__)


class StopOnSignal(TrainerCallback):
    """Callback that stops training at SIGTERM or Ctrl-C, after the current step and with a checkpoint.

    A second signal stops a single process at once.

    Several processes agree after every step, since the signal may not have reached all of them by then. Their launcher
    repeats signals, so a second signal has no meaning there.
    """

    def __init__(self) -> None:
        self.stop = False
        self.checkpoint: Path | None = None
        """Checkpoint of the step after which training stopped."""
        self.accelerator: Accelerator | None = None

    @contextmanager
    def listening(self, accelerator: Accelerator) -> Generator[None]:
        """Handle signals inside the block.

        Raises:
            TrainingInterrupted: at the end of the block, if a signal stopped training.
        """
        self.accelerator = accelerator
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread receives signals
            return
        before = {number: signal.signal(number, self._hear) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.stop:
            raise TrainingInterrupted(*([] if self.checkpoint is None else [str(self.checkpoint)]))

    def _hear(self, number: int, _: object) -> None:
        assert self.accelerator is not None
        alone = self.accelerator.num_processes == 1
        if self.stop and alone:
            raise KeyboardInterrupt
        if not self.stop and self.accelerator.is_main_process:  # a step can take minutes
            again = "; a second signal stops it at once" if alone else ""
            name = signal.Signals(number).name
            logger.warning("%s: training stops with a checkpoint after the current step%s", name, again)
        self.stop = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert self.accelerator is not None
        own: Any = torch.tensor(float(self.stop), device=self.accelerator.device)
        agreed: Any = self.accelerator.reduce(own)
        self.stop = agreed.item() > 0
        if self.stop:
            self.checkpoint = Path(args.output_dir or "") / f"{PREFIX}{state.global_step}"
            control.should_save = control.should_training_stop = True
