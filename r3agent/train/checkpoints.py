"""Checkpoints of a training, and out-of-memory errors.

Checkpoints are beside the version, in `v0001.checkpoints/`, and are removed when the version is complete. One is whole
if its manifest, which is written last, has the hashes of all its files; any other is passed over.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import orjson
import torch
from accelerate import PartialState
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from r3agent._util.files import disk_errors, write_atomically
from r3agent.errors import ConfigError, TrainingError
from r3agent.store.registry import checkpoints_dir
from r3agent.train.base import one_line
from r3agent.train.config import PolicyStart, TrainConfig
from r3agent.train.row import Row

logger = logging.getLogger(__name__)

DIGEST_FILE = "rows.sha256"
PREFIX = "checkpoint-"
"""Beginning of a checkpoint's name, as transformers has it; its step follows."""
MANIFEST_FILE = "r3agent_manifest.json"
"""File of a checkpoint that maps the name of each other file to its hash."""
SECONDS_FILE = "r3agent_seconds.json"
"""File of a checkpoint with the duration of the training up to it."""

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
    """Directory of the checkpoints of the training that writes `version_dir`, which begins now."""

    def __init__(self, version_dir: Path) -> None:
        self.version = version_dir.name
        self.directory = checkpoints_dir(version_dir)
        self.digest = ""
        self.last: Path | None = None
        """Last whole checkpoint; training resumes from it."""
        self._began = time.perf_counter()

    def seconds(self) -> float:
        """Return the duration of the training in seconds, with that up to the checkpoint that it resumed from."""
        return round(time.perf_counter() - self._began, 3)

    def bind(
        self, rows: Iterable[Row], *, config: TrainConfig, start: PolicyStart, processes: PartialState, resume: bool
    ) -> None:
        """Bind the checkpoints to one training: its rows, settings and starting version.

        Args:
            resume: continue from the last whole checkpoint, or anew if none is whole; otherwise all are removed and
                training starts again.

        Raises:
            ConfigError: there is nothing to resume, or the checkpoints are of another training.
        """
        ways, layout = WAYS_TO_COMPUTE, 0
        if config.loss_type == "bnpo":  # an average over micro-batches depends on them
            ways, layout = ways - SIZES, processes.num_processes
        settings = [config.model_dump(exclude=ways), start.version, layout]
        self.digest = _digest(rows, settings)
        if not resume:
            return
        found = self._all()
        if not found:
            raise ConfigError(f"{self.directory}: no checkpoint of {self.version}; train without --resume")
        for path in found:
            fault = damage(path)
            if fault is None:
                self.last = path
                break
            if processes.is_main_process:
                logger.warning("%s is passed over: %s", path, fault)
        digest = self._read_digest()
        if self.last is None or digest is None:
            self.last = None
            if processes.is_main_process:
                logger.warning("%s has no whole checkpoint: training starts anew", self.directory)
        elif digest not in (self.digest, _digest(map(_with_integer, rows), settings)):
            raise ConfigError(
                f"{self.last} is of other rows or other settings than the current ones: put the trajectories and "
                "[train] back as they were, or train anew: `r3agent train` without --resume, or `r3agent loop --anew`"
            )
        if self.last is not None and (file := self.last / SECONDS_FILE).exists():
            self._began -= orjson.loads(file.read_bytes())

    def begin(self) -> None:
        """Create the directory; keep the checkpoint that training resumes from, and remove all others."""
        if self.last is None:
            shutil.rmtree(self.directory, ignore_errors=True)
            write_atomically(self.directory / DIGEST_FILE, self.digest)
        self.remove_others()

    def remove_others(self) -> None:
        """Remove all checkpoints but the last whole one."""
        for path in self._all():
            if path != self.last:
                shutil.rmtree(path, ignore_errors=True)

    def seal(self, step: int) -> None:
        """Write the manifest of a checkpoint, which makes it whole."""
        path = self.directory / f"{PREFIX}{step}"
        write_atomically(path / SECONDS_FILE, str(self.seconds()))
        hashes = {str(file.relative_to(path)): _hash(file) for file in _files(path)}
        write_atomically(path / MANIFEST_FILE, orjson.dumps(hashes, option=orjson.OPT_INDENT_2).decode())
        self.last = path

    def _read_digest(self) -> str | None:
        try:
            digest = (self.directory / DIGEST_FILE).read_text()
        except (OSError, ValueError):
            return None
        return digest if len(digest) == len(self.digest) else None

    def _all(self) -> list[Path]:
        """List the checkpoints, newest first."""
        return sorted(self.directory.glob(f"{PREFIX}[0-9]*"), key=_step, reverse=True)

    @contextmanager
    def whole_or_none(self) -> Generator[None]:
        """Keep the checkpoints if training fails in the block; remove the directory if it has none."""
        try:
            yield
        except BaseException:
            if self.directory.is_dir() and not self._all():
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


@contextmanager
def writing(checkpoint: Path) -> Generator[None]:
    """Remove the half of a checkpoint that the block cannot write; earlier ones stay.

    Raises:
        ConfigError: the disk is full or cannot be written.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:  # torch raises a RuntimeError
        if isinstance(error, torch.OutOfMemoryError):
            raise
        shutil.rmtree(checkpoint, ignore_errors=True)
        raise ConfigError(
            f"cannot write to {checkpoint}: {one_line(error)}; free space, then go on from the checkpoint before with "
            "--resume if there is one, or set train.save_steps higher"
        ) from error


def damage(checkpoint: Path) -> str | None:
    """Return how a checkpoint differs from its manifest, or `None` if it is whole."""
    try:
        hashes: dict[str, str] = orjson.loads((checkpoint / MANIFEST_FILE).read_bytes())
        for name, expected in hashes.items():
            if _hash(checkpoint / name) != expected:
                return f"{name} has changed or was cut off"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, AttributeError) as error:
        return f"it cannot be read: {error}"
    return None


def _digest(rows: Iterable[Row], settings: list[Any]) -> str:
    """Hash the JSON of `[rows, *settings]`."""
    digest, before = sha256(b"[["), b""
    for row in rows:
        digest.update(before + orjson.dumps(tuple(row)))
        before = b","
    digest.update(b"]," + orjson.dumps(settings)[1:])
    return digest.hexdigest()


def _with_integer(row: Row) -> Row:
    """Return a row as earlier releases hashed it, where the temperature was given as an integer."""
    if row.temperature is None or not float(row.temperature).is_integer():
        return row
    return row._replace(temperature=int(row.temperature))


def _files(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MANIFEST_FILE)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _step(checkpoint: Path) -> int:
    digits = checkpoint.name.removeprefix(PREFIX)
    return int(digits) if digits.isdecimal() else -1


class SealCheckpoints(TrainerCallback):
    """Callback that makes each checkpoint whole when all processes have written their part, and keeps one before it."""

    def __init__(self, checkpoints: Checkpoints, processes: PartialState) -> None:
        self.checkpoints, self.processes = checkpoints, processes

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if control.should_save and self.processes.is_main_process:
            self.checkpoints.remove_others()  # so that there is room for this one

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.processes.wait_for_everyone()
        if self.processes.is_main_process:
            self.checkpoints.seal(state.global_step)


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
