"""Trajectories on disk: append-only JSON Lines, one record a line, many shards in one directory.

A writer opens a shard of its own, so that no process ever appends behind another's torn line. A line that was
torn by a crash loses only itself: it is reported and skipped, and its episode is collected again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from errno import EACCES
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import orjson
from pydantic import ValidationError

from r3agent.errors import ConfigError, RecordError, SchemaVersionError
from r3agent.trajectory import Record, Trajectory

if TYPE_CHECKING:
    from datasets import Dataset, Features

logger = logging.getLogger(__name__)


class TrajectoryWriter:
    """Appends trajectories to a fresh shard; use it as a context manager. Not for several threads at once.

    Raises:
        ConfigError: the directory cannot be made or written.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._fd: int | None = None
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if not os.access(self.directory, os.W_OK):
                raise PermissionError(EACCES, os.strerror(EACCES))
        except OSError as error:
            raise ConfigError(
                f"cannot write to {self.directory}: {error.strerror}; choose another directory or free it"
            ) from error

    def append(self, trajectory: Trajectory) -> None:
        """Write one record with a single `write`, so that a crash tears at most the last line.

        Raises:
            RecordError: the disk is full or gone; what was appended before stays.
        """
        line = memoryview(trajectory.model_dump_json().encode() + b"\n")
        try:
            if self._fd is None:
                self._fd = self._open_shard()
            while line:
                line = line[os.write(self._fd, line) :]
        except OSError as error:
            self._abandon()
            raise RecordError(f"cannot write to {self.directory}: {error.strerror}; what is stored stays") from error

    def close(self) -> None:
        if self._fd is not None:
            os.fsync(self._fd)
            self._abandon()

    def _abandon(self) -> None:
        """Leave the shard as it is: what comes after a torn line goes to another."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open_shard(self) -> int:
        number = len(shards(self.directory))
        while True:
            path = self.directory / f"{number:05d}.jsonl"
            try:
                return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644)
            except FileExistsError:
                number += 1

    def __enter__(self) -> TrajectoryWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read(directory: str | Path) -> Iterator[Trajectory]:
    """Every record of every shard, in order of writing.

    Raises:
        ConfigError: there is no such directory.
        RecordError: a whole line is not a trajectory.
        SchemaVersionError: another version of r3agent wrote it.
    """
    for shard in shards(directory):
        with shard.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                where = f"{shard}:{number}"
                try:
                    data = orjson.loads(line)
                except orjson.JSONDecodeError:
                    logger.warning("%s: torn line skipped (%d bytes)", where, len(line))
                    continue
                try:
                    yield Trajectory.model_validate(data)
                except SchemaVersionError as error:
                    raise SchemaVersionError(f"{where}: {error}") from None
                except ValidationError as error:
                    first = error.errors()[0]
                    key = ".".join(map(str, first["loc"]))
                    raise RecordError(
                        f"{where}: not a trajectory: {key}: {first['msg']}; remove the line or restore the file"
                    ) from error


def load(directory: str | Path) -> list[Trajectory]:
    """One trajectory for each id: an episode that was collected again replaces the one that errored.

    Raises:
        ConfigError, RecordError, SchemaVersionError: as `read`.
    """
    by_id: dict[str, Trajectory] = {}
    for trajectory in read(directory):
        known = by_id.get(trajectory.trajectory_id)
        if known is None or known.error is not None:
            by_id[trajectory.trajectory_id] = trajectory
    return list(by_id.values())


def shards(directory: str | Path) -> list[Path]:
    """The files of a store, in order of writing.

    Raises:
        ConfigError: there is no such directory.
    """
    if not Path(directory).is_dir():
        raise ConfigError(f"{directory}: there is no such directory; collect some trajectories first")
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
    return Dataset.from_list([t.model_dump(mode="json") for t in trajectories], features=features())


def features() -> Features:
    """The record's columns, for `datasets.load_dataset("json", data_files=..., features=features())`.

    Without them `datasets` takes a column that is empty in the first shard to be empty in all, and fails at the
    first error or tool call of a later one.
    """
    from datasets import Features

    return Features(_feature(Trajectory))


def _feature(kind: Any) -> Any:
    from datasets import Json, List, Value

    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:  # with None, which every column may hold
        return _feature(inner[0])
    if origin is tuple:
        return List(_feature(inner[0]))
    if origin is dict:
        return Json()
    if origin is Literal:
        return _feature(type(inner[0]))
    if issubclass(kind, Record):
        return {name: _feature(field.annotation) for name, field in kind.model_fields.items()}
    return Value({str: "string", int: "int64", float: "float64", bool: "bool"}[kind])
