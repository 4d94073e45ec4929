"""Lock between processes on one file system."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from r3agent._util.files import disk_errors
from r3agent.errors import BusyError


@contextmanager
def file_lock(path: Path, purpose: str) -> Generator[None]:
    """Hold a lock on `path`; the kernel releases it if the process dies.

    Raises:
        BusyError: another process holds the lock; the message names it.
        ConfigError: the file cannot be written.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise BusyError(
                f"{path} is held by {file.read() or 'another process'}: one at a time; try again when it ends"
            ) from None
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()} ({purpose})")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
