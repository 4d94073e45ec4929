"""Trajectories on disk: append-only JSON Lines, one record a line, many shards in one directory.

A writer opens a shard of its own, so that no process ever appends behind another's torn line. A line that was
torn by a crash loses only itself: it is reported and skipped, and its episode is collected again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import orjson
from pydantic import ValidationError

from r3agent.errors import ConfigError, RecordError
from r3agent.trajectory import Trajectory

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


class TrajectoryWriter:
    """Appends trajectories to a fresh shard; use it as a context manager. Not for several threads at once."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._fd: int | None = None

    def append(self, trajectory: Trajectory) -> None:
        """Write one record with a single `write`, so that a crash tears at most the last line.

        Raises:
            ConfigError: the directory cannot be written.
        """
        if self._fd is None:
            self._fd = self._open_shard()
        line = memoryview(trajectory.model_dump_json().encode() + b"\n")
        while line:
            line = line[os.write(self._fd, line) :]

    def close(self) -> None:
        if self._fd is not None:
            os.fsync(self._fd)
            os.close(self._fd)
            self._fd = None

    def _open_shard(self) -> int:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            number = len(list(self.directory.glob("*.jsonl")))
            while True:
                path = self.directory / f"{number:05d}.jsonl"
                try:
                    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644)
                except FileExistsError:
                    number += 1
        except OSError as error:
            raise ConfigError(
                f"cannot write to {self.directory}: {error.strerror}; choose another directory or free it"
            ) from error

    def __enter__(self) -> TrajectoryWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def read(directory: str | Path) -> Iterator[Trajectory]:
    """Every record of every shard, in order of writing.

    Raises:
        RecordError: a whole line is not a trajectory.
        SchemaVersionError: another version of r3agent wrote it.
    """
    for shard in shards(directory):
        for number, line in enumerate(shard.read_bytes().split(b"\n"), start=1):
            if not line.strip():
                continue
            try:
                data = orjson.loads(line)
            except orjson.JSONDecodeError:
                logger.warning("%s:%d: torn line skipped (%d bytes)", shard, number, len(line))
                continue
            try:
                yield Trajectory.model_validate(data)
            except ValidationError as error:
                raise RecordError(f"{shard}:{number}: not a trajectory: {error}") from error


def load(directory: str | Path) -> list[Trajectory]:
    """One trajectory for each id: an episode that was collected again replaces the one that errored."""
    by_id: dict[str, Trajectory] = {}
    for trajectory in read(directory):
        known = by_id.get(trajectory.trajectory_id)
        if known is None or known.error is not None:
            by_id[trajectory.trajectory_id] = trajectory
    return list(by_id.values())


def shards(directory: str | Path) -> list[Path]:
    return sorted(Path(directory).glob("*.jsonl"))


def to_dataset(directory: str | Path) -> Dataset:
    """The records as a `datasets.Dataset` with one row per trajectory; needs the `train` extra.

    Raises:
        RecordError: there is nothing to read.
    """
    from datasets import Dataset

    trajectories = load(directory)
    if not trajectories:
        raise RecordError(f"{directory}: no trajectories; collect some first")
    return Dataset.from_list([t.model_dump(mode="json") for t in trajectories])
