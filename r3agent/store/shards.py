"""Trajectories on disk: append-only JSON Lines, one record per line, many shards in one directory.

Each writer opens its own shard, so no process appends after another's incomplete line. A shard in Parquet, of
`r3agent.store.parquet`, is read like any other. A line that a crash left incomplete is reported and skipped; only its
episode is lost, and collected again. A complete line that is no record is left out, counted and reported: `r3agent data
check` lists and repairs such lines.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from errno import EACCES
from pathlib import Path
from typing import Any, Literal

from r3agent._util.files import remedy_of, sync_directory
from r3agent._util.messages import nearest
from r3agent.errors import ConfigError, RecordError
from r3agent.records.trajectory import EPISODE, Trajectory, new_id
from r3agent.store import parquet
from r3agent.store.entry import HEADER, counts_of, index_path, row_of
from r3agent.store.lines import encode
from r3agent.store.reading import Unreadable, records

CONFIG_FILE = "r3.toml"
"""Settings of a run, in its directory."""

STORES = ("trajectories", "eval/v*", "gate/v*/v*")
"""Patterns of the stores of a run's own tasks in its directory: for training, of evaluations, and of gates."""

OTHER_STORES = ("eval/forgetting/*/v*", "gate/v*/forgetting/*/v*")
"""Patterns of the stores of tasks of other sources, whose ids may be the same."""

REPORT_FILE = "report.html"
"""Report of a run or a store, in its directory; it has the text of episodes."""

COLLECT_LOCK = ".collect.lock"
"""File in a run's directory that is locked while its episodes are collected, or its shards are rewritten."""

ENDINGS = (".jsonl", parquet.ENDING)
"""Endings of the names of shards."""


Fsync = Literal["never", "interval", "episode"]
"""Time at which episodes are on disk for good, so that a loss of power does not lose them: when the system writes them,
every 5 seconds and at the end, or before the next episode is written."""

FSYNC_S = 5.0
"""Interval of `interval`."""

INDEX_EVERY = 64
"""Number of records whose entries are written into the index at once."""


class TrajectoryWriter(AbstractContextManager["TrajectoryWriter"]):
    """Writer that appends to a new shard and its index; a context manager. It is not thread-safe.

    Several processes may write into one directory, each to its own shard.

    Args:
        unique: name the shard by time and a random id instead of a number, so that workers on many machines do not
            have to coordinate, and their files can be merged into one directory.
        prefix: beginning of the names of its shards, which are unique too.
        indexed: write the index; otherwise its first reader makes it.
        fsync: time at which records are on disk for good.

    Raises:
        ConfigError: the directory cannot be created or written.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        unique: bool = False,
        prefix: str = "",
        indexed: bool = True,
        fsync: Fsync = "interval",
    ) -> None:
        self.directory = store_at(directory)
        self._unique, self._prefix = unique or bool(prefix), prefix
        self._indexed, self._fsync = indexed, fsync
        self._shard: Path | None = None
        self._fd = -1
        self._size = 0
        self._rows: list[bytes] = []
        self._synced = time.monotonic()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if not os.access(self.directory, os.W_OK):
                raise PermissionError(EACCES, os.strerror(EACCES))
        except OSError as error:
            raise ConfigError(f"cannot write to {self.directory}: {error.strerror}; {remedy_of(error)}") from error

    def append(
        self, trajectory: Trajectory, counts: dict[str, Any] | None = None, *, line: bytes | None = None
    ) -> None:
        """Write one record with a single `write`, so that a crash damages at most the last line.

        Args:
            counts: `counts_of` the trajectory, if known.
            line: line of the record, if it has one.

        Raises:
            RecordError: the disk is full or unavailable; earlier records are kept.
        """
        line = encode(trajectory) if line is None else line
        self.append_line(line)
        if self._indexed:
            counts = counts_of(trajectory) if counts is None else counts
            self._rows.append(row_of(trajectory, line, self._size - len(line), len(line), counts))
        if len(self._rows) >= INDEX_EVERY:
            self._write_index()

    def append_line(self, line: bytes) -> None:
        """Write the line of a record, without an entry in the index: its first reader makes that.

        Raises:
            RecordError: as `append`.
        """
        try:
            if self._shard is None:
                self._open_shard()
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
            now = time.monotonic()
            if self._fsync == "episode" or (self._fsync == "interval" and now - self._synced >= FSYNC_S):
                os.fsync(self._fd)
                self._synced = now
        except OSError as error:
            self._take_back()
            raise RecordError(
                f"cannot write to {self.directory}: {error.strerror}; what is stored stays: {remedy_of(error)}"
            ) from error
        self._size += len(line)

    def close(self) -> None:
        if self._shard is None:
            return
        try:
            if self._fsync != "never":
                os.fsync(self._fd)
        except OSError as error:
            raise RecordError(
                f"cannot write to {self._shard}: {error.strerror}; its last episodes may be lost"
            ) from error
        finally:
            self._write_index()
            self._abandon()

    def _take_back(self) -> None:
        """Cut off an incomplete line, and close the shard; later records go to another one."""
        if self._shard is not None:
            with suppress(OSError):
                os.ftruncate(self._fd, self._size)
            self._write_index()
            self._abandon()

    def _abandon(self) -> None:
        os.close(self._fd)
        self._shard, self._fd, self._size = None, -1, 0

    def _open_shard(self) -> None:
        taken = [int(path.stem) for path in shards(self.directory) if path.stem.isdecimal()]
        number = max(taken, default=-1) + 1
        while self._shard is None:
            name = f"{self._prefix}{datetime.now(UTC):%Y%m%dT%H%M%S}-{new_id()}" if self._unique else f"{number:05d}"
            shard = self.directory / f"{name}.jsonl"
            with suppress(FileExistsError):
                self._fd = os.open(shard, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644)
                self._shard = shard
            number += 1
        with suppress(OSError):  # a file system without locks
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # `data check --repair` leaves it alone
        index_path(self._shard).unlink(missing_ok=True)  # of a shard of this name that was taken away
        if self._fsync != "never":
            sync_directory(self.directory)

    def _write_index(self) -> None:
        """Append to the index; readers make what is missing."""
        if self._shard is None or not self._rows:
            return
        path = index_path(self._shard)
        try:
            path.parent.mkdir(exist_ok=True)
            with path.open("ab") as index:
                index.write(b"".join([*([] if index.tell() else [HEADER]), *self._rows]))
        except OSError:
            self._indexed = False  # a gap in it would hide records
        self._rows = []

    def __exit__(self, *_: object) -> None:
        self.close()


def read(
    directory: str | Path, *, strict: bool = False, unreadable: list[Unreadable] | None = None, prefix: str = ""
) -> Iterator[Trajectory]:
    """Read all records of all shards of a store or run directory, in order of writing, without labels.

    Args:
        strict, unreadable: as in `records`.
        prefix: beginning of the names of the shards; others are not read.

    Raises:
        ConfigError: there is no such directory.
        RecordError: a complete line is not a trajectory, and `strict`.
        SchemaVersionError: another version of r3agent wrote it.
    """
    return records(shards(directory, prefix), Trajectory, strict=strict, unreadable=unreadable)


def store_at(directory: str | Path) -> Path:
    """Return the `trajectories/` of a run directory, or any other directory unchanged."""
    inside = Path(directory) / "trajectories"
    is_run = inside.is_dir() or (Path(directory) / CONFIG_FILE).is_file()
    return inside if is_run else Path(directory)


def store_of_run(run: str | Path) -> Path:
    """Return the store of a run directory.

    Raises:
        ConfigError: it is no run directory.
    """
    if (Path(run) / CONFIG_FILE).is_file():
        return store_at(run)
    near = nearest(Path(run).name, (file.parent.name for file in Path(run).parent.glob(f"*/{CONFIG_FILE}")))
    make = shlex.join(["r3agent", "init", "--task", "recorded", "--run", str(run)])
    raise ConfigError(f"run {str(run)!r} is no run, it has no {CONFIG_FILE}; {near}`{make}` makes one")


def find(trajectories: Sequence[Trajectory], prefix: str, where: str, stored: Callable[[], Set[str]]) -> Trajectory:
    """Find the trajectory whose id begins with `prefix`, or whose episode a gateway recorded under that name.

    Args:
        trajectories: those that may be it.
        stored: returns the ids of all in the store, of which the message names the nearest.

    Raises:
        ConfigError: there is none (the message suggests the nearest id) or more than one; or `prefix` is empty.
    """
    if not prefix:
        raise ConfigError("trajectory '': every id begins with that; give an id, or what it begins with")
    found = [t for t in trajectories if t.trajectory_id.startswith(prefix) or t.metadata.get(EPISODE) == prefix]
    exact = [t for t in found if t.trajectory_id == prefix]
    if len(exact or found) == 1:
        return (exact or found)[0]
    if found:
        raise ConfigError(f"trajectory {prefix!r}: begins the ids of {len(found)} in {where}; give more of it")
    ids = stored()
    hint = f"{nearest(prefix, ids)}r3agent inspect lists them" if ids else "collect some first"
    raise ConfigError(f"trajectory {prefix!r}: not among the {len(ids)} in {where}; {hint}")


def latest(trajectories: Iterable[Trajectory]) -> list[Trajectory]:
    """Keep one trajectory per id: where an episode went on, its last state; or else the first without an error."""
    by_id: dict[str, Trajectory] = {}
    for trajectory in trajectories:
        earlier = by_id.get(trajectory.trajectory_id)
        if earlier is None or replaces(trajectory, earlier):
            by_id[trajectory.trajectory_id] = trajectory
    return list(by_id.values())


def replaces(later: Trajectory, earlier: Trajectory) -> bool:
    """Compare two states of an episode; that which went on may have been written into an older shard."""
    more, done = ({span.span_id for span in state.spans} for state in (later, earlier))
    if more != done and (more <= done or done <= more):
        return done < more
    if more != done:  # it was collected again
        return earlier.error is not None
    new, old = ((s.error is None, sum(span.verdict is not None for span in s.spans)) for s in (later, earlier))
    return new >= old


def shards(directory: str | Path, prefix: str = "") -> list[Path]:
    """List the files of a store, or of the one in a run directory, in order of writing.

    Args:
        prefix: beginning of their names.

    Raises:
        ConfigError: there is no such directory.
    """
    directory = store_at(directory)
    if not directory.is_dir():
        near = nearest(directory.name, (path.name for path in directory.parent.glob("*/")))
        fix = "collect some trajectories first" if directory == store_at(directory.parent) else f"{near}check the path"
        remedy = "give its directory" if directory.is_file() else fix
        raise ConfigError(f"{directory}: {'a file' if directory.is_file() else 'there is no such directory'}; {remedy}")
    found = [path for path in directory.glob(f"{prefix}*") if path.suffix in ENDINGS and not path.name.startswith(".")]
    return sorted(found)
