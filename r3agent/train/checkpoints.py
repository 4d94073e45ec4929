"""Checkpoints of one training, beside the version it makes: `v0001.checkpoints/`, gone when the version is complete."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import orjson
from transformers.trainer_utils import get_last_checkpoint

from r3agent._util.files import disk_errors, write_atomically
from r3agent.errors import ConfigError
from r3agent.store.registry import checkpoints_dir
from r3agent.train.config import TrainConfig
from r3agent.train.row import Row
from r3agent.train.starting_policy import PolicyStart

FINGERPRINT_FILE = "rows.sha256"

WAYS_TO_COMPUTE = {"micro_batch_tokens", "share_prompt", "gradient_checkpointing", "save_steps", "report_to"}
"""Settings that may change between an interruption and its continuation, for they do not change what is learnt."""


class Checkpoints:
    """The directory in which the training that makes `version_dir` keeps its checkpoints."""

    def __init__(self, version_dir: Path) -> None:
        self.version = version_dir.name
        self.directory = checkpoints_dir(version_dir)
        self.fingerprint = ""
        self.last: str | None = None
        """The checkpoint that training goes on from."""

    def belong_to(self, rows: Iterable[Row], *, config: TrainConfig, start: PolicyStart, resume: bool) -> None:
        """
        Args:
            resume: go on from the last one; otherwise they are removed and training begins anew.

        Raises:
            ConfigError: there is nothing to resume, or it was another training.
        """
        what = [[tuple(row) for row in rows], config.model_dump(exclude=WAYS_TO_COMPUTE), start.version]
        self.fingerprint = sha256(orjson.dumps(what)).hexdigest()
        if not resume:
            return
        self.last = get_last_checkpoint(str(self.directory)) if self.directory.is_dir() else None
        if self.last is None:
            raise ConfigError(f"{self.directory}: no checkpoint of {self.version}; train without --resume")
        if (self.directory / FINGERPRINT_FILE).read_text() != self.fingerprint:
            raise ConfigError(
                f"{self.last} is of other rows or other settings than those of now: put the trajectories and [train] "
                "back as they were, or train anew without --resume"
            )

    def begin(self) -> None:
        """Make the directory, and empty it unless training resumes."""
        if self.last is None:
            shutil.rmtree(self.directory, ignore_errors=True)
            write_atomically(self.directory / FINGERPRINT_FILE, self.fingerprint)

    @contextmanager
    def whole_or_none(self) -> Generator[None]:
        """A training that fails inside leaves its checkpoints, or nothing if it has none."""
        try:
            yield
        except BaseException:
            if self.directory.is_dir() and get_last_checkpoint(str(self.directory)) is None:
                self.remove()
            raise

    def remove(self) -> None:
        with disk_errors(self.directory):
            shutil.rmtree(self.directory)
