"""Replacement of a file of lines by itself without some of them: write a copy, verify it, rename it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import reduce
from hashlib import file_digest
from pathlib import Path
from zlib import crc32

from r3agent._util.files import disk_errors, sync_directory
from r3agent._util.lock import file_lock
from r3agent.data.receipts import Rewritten
from r3agent.errors import BusyError, RecordError
from r3agent.store.entry import index_path
from r3agent.store.parquet import ENDING, write_lines
from r3agent.store.reading import LABELS, lines_of
from r3agent.store.shards import COLLECT_LOCK, CONFIG_FILE

COPY = ".forget."
"""Beginning of the name of a file's copy, which replaces it."""

Keeps = Callable[[bytes], bool]


@contextmanager
def no_collection(directory: Path) -> Generator[None]:
    """Keep a run from collecting, because a collection knows the places of the records that it resumes from.

    Args:
        directory: a run directory, or a store, which may be in one.

    Raises:
        BusyError: it is collecting.
    """
    run = directory.parent if directory.name == "trajectories" else directory
    if (run / CONFIG_FILE).is_file():
        with file_lock(run / COLLECT_LOCK, "rewriting its shards"):
            yield
    else:
        yield


@contextmanager
def alone(path: Path) -> Generator[None]:
    """Lock a file; labels are appended in an instant, so theirs is waited for.

    Raises:
        BusyError: a process writes the file.
        ConfigError: it cannot be written.
    """
    with disk_errors(path), path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if path.parent.name == LABELS else fcntl.LOCK_NB))
        except BlockingIOError:
            raise BusyError(f"{path}: another process writes it; end that process, and try again") from None
        yield


def take_lines(path: Path, keeps: Keeps, begin: Callable[[Rewritten], None]) -> None:
    """Take lines out of a file, which is locked meanwhile. A crash leaves the old or the new file, never a part.

    Args:
        keeps: return True for a line that stays, byte for byte.
        begin: called with what will be different, before the file is replaced.

    Raises:
        BusyError: a process writes the file.
        RecordError: the copy is not as it was written.
        ConfigError: the copy cannot be written.
    """
    path = path.resolve()  # a link stays one
    copy = path.with_name(f"{COPY}{path.name}")
    with alone(path):
        try:
            before = _digest(path)
            n_taken = _write(copy, path, keeps)
            after = _digest(copy)
            if not all(map(keeps, lines_of(copy))):
                raise RecordError(f"{copy}: it has a line that was taken out; nothing was replaced")
            begin(Rewritten(path=str(path), lines=n_taken, sha256_before=before, sha256_after=after))
            os.replace(copy, path)
            index_path(path).unlink(missing_ok=True)  # of the former file
            sync_directory(path.parent)
        finally:
            copy.unlink(missing_ok=True)


def _write(copy: Path, path: Path, keeps: Keeps) -> int:
    """Write the lines that stay; return the number of those that do not."""
    n_taken, written = 0, crc32(b"")

    def kept() -> Iterator[bytes]:
        nonlocal n_taken, written
        for line in lines_of(path):
            if keeps(line):
                written = crc32(line, written)
                yield line
            else:
                n_taken += 1

    if ENDING in path.suffixes:
        write_lines(copy, kept(), replace=True)
    else:
        with copy.open("wb") as out:
            out.writelines(kept())
            out.flush()
            os.fsync(out.fileno())
    copy.chmod(path.stat().st_mode)
    read = reduce(lambda crc, line: crc32(line, crc), lines_of(copy), crc32(b""))
    if read != written:
        raise RecordError(f"{copy}: it is not as it was written, so the disk may be at fault; nothing was replaced")
    return n_taken


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
