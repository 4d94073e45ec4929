"""Checkpoints of a training, stopping at a signal, and out-of-memory errors.

Checkpoints are beside the version, in `v0001.checkpoints/`, and are removed when the version is complete.
"""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
import torch
from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from r3agent._util.files import disk_errors, write_atomically
from r3agent.errors import ConfigError, TrainingError, TrainingInterrupted
from r3agent.store.registry import checkpoints_dir
from r3agent.train.config import PolicyStart, TrainConfig
from r3agent.train.row import Row

DIGEST_FILE = "rows.sha256"

WAYS_TO_COMPUTE = {
    "micro_batch_tokens",
    "share_prompt",
    "gradient_checkpointing",
    "save_steps",
    "report_to",
    "max_mismatch",
    "min_ess",
    "max_drift",
}
"""Settings that may change when a training resumes, because the weights do not depend on them, limits included."""

SIZES = {"micro_batch_tokens", "share_prompt"}
"""Those of them that decide on the size of micro-batches; so does the number of processes."""


class Checkpoints:
    """Directory of the checkpoints of the training that writes `version_dir`."""

    def __init__(self, version_dir: Path) -> None:
        self.version = version_dir.name
        self.directory = checkpoints_dir(version_dir)
        self.digest = ""
        self.last: str | None = None
        """Checkpoint to resume from."""

    def bind(
        self, rows: Iterable[Row], *, config: TrainConfig, start: PolicyStart, processes: int, resume: bool
    ) -> None:
        """Bind the checkpoints to one training: its rows, settings and starting version.

        Args:
            resume: continue from the last checkpoint; otherwise all are removed and training starts again.

        Raises:
            ConfigError: there is nothing to resume, or the checkpoints are of another training.
        """
        ways, layout = WAYS_TO_COMPUTE, 0
        if config.loss_type == "bnpo":  # an average over micro-batches depends on them
            ways, layout = ways - SIZES, processes
        identity = [[tuple(row) for row in rows], config.model_dump(exclude=ways), start.version, layout]
        self.digest = sha256(orjson.dumps(identity)).hexdigest()
        if not resume:
            return
        self.last = get_last_checkpoint(str(self.directory)) if self.directory.is_dir() else None
        if self.last is None:
            raise ConfigError(f"{self.directory}: no checkpoint of {self.version}; train without --resume")
        if (self.directory / DIGEST_FILE).read_text() != self.digest:
            raise ConfigError(
                f"{self.last} is of other rows or other settings than the current ones: put the trajectories and "
                "[train] back as they were, or train anew: without --resume, or in a loop after removing "
                f"{self.directory}"
            )

    def begin(self) -> None:
        """Create the directory, and empty it unless training resumes."""
        if self.last is None:
            shutil.rmtree(self.directory, ignore_errors=True)
            write_atomically(self.directory / DIGEST_FILE, self.digest)

    @contextmanager
    def whole_or_none(self) -> Generator[None]:
        """Keep the checkpoints if training fails in the block; remove the directory if it has none."""
        try:
            yield
        except BaseException:
            if self.directory.is_dir() and get_last_checkpoint(str(self.directory)) is None:
                self.remove()
            raise

    @contextmanager
    def none_if_refused(self, first: bool) -> Generator[None]:
        """Remove the checkpoints if the block refuses the trained weights: resuming would lead to the same ones.

        Args:
            first: this is the first process, which removes.
        """
        try:
            yield
        except TrainingError:
            if first:
                self.remove()
            raise

    def remove(self) -> None:
        with disk_errors(self.directory):
            shutil.rmtree(self.directory)


class StopOnSignal(TrainerCallback):
    """Callback that stops training at SIGTERM or Ctrl-C, after the current step and with a checkpoint.

    A second signal stops a single process at once.

    Several processes agree after every step, since the signal may not have reached all of them by then. Their launcher
    repeats signals, so a second signal has no meaning there.
    """

    def __init__(self) -> None:
        self.stop = False
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
            raise TrainingInterrupted

    def _hear(self, *_: object) -> None:
        assert self.accelerator is not None
        if self.stop and self.accelerator.num_processes == 1:
            raise KeyboardInterrupt
        self.stop = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert self.accelerator is not None
        own: Any = torch.tensor(float(self.stop), device=self.accelerator.device)
        agreed: Any = self.accelerator.reduce(own)
        self.stop = agreed.item() > 0
        if self.stop:
            control.should_save = control.should_training_stop = True


# ---- memory ----


@contextmanager
def enough_memory(config: TrainConfig) -> Generator[None]:
    """Suggest settings that need less memory if the block runs out of it.

    Raises:
        TrainingError: the block ran out of memory.
    """
    try:
        yield
    except RuntimeError as error:
        # the error has its own class on a GPU, and only a message on the CPU
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise TrainingError(f"out of memory ({str(error).splitlines()[0]}); {_remedy(config)}") from error


def _remedy(config: TrainConfig) -> str:
    less = [
        f"lower train.micro_batch_tokens = {config.micro_batch_tokens}",
        f"lower train.max_row_tokens = {config.max_row_tokens}",
        *(["set train.gradient_checkpointing = true"] if not config.gradient_checkpointing else []),
        *(["set train.dtype = 'bfloat16'"] if config.dtype == "float32" else []),
        *(["set train.method = 'lora'"] if config.method == "full" else []),
    ]
    return ", or ".join(less)
