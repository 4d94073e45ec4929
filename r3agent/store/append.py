"""Append of records to a file that several processes share: all of them, or none."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from r3agent.errors import RecordError
from r3agent.records.record import VersionedRecord


def append_records(path: Path, records: Sequence[VersionedRecord]) -> None:
    """Write records to disk, after the end of the line that a crash left incomplete.

    Raises:
        RecordError: they cannot be written, and none of them is.
    """
    lines = b"".join(record.line() for record in records)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_ino != path.stat().st_ino:  # a repair has replaced it
                return append_records(path, records)
            end = file.seek(0, os.SEEK_END)
            if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
                lines = b"\n" + lines
            left = memoryview(lines)
            try:
                while left:
                    left = left[os.write(file.fileno(), left) :]
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    os.ftruncate(file.fileno(), end)
                raise
    except OSError as error:
        raise RecordError(f"cannot write to {path}: {error.strerror}; what is stored stays") from error
