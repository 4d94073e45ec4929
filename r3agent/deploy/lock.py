"""One deploy at a time for each run directory."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from r3agent.errors import ConfigError, DeployError


@contextmanager
def deploy_lock(run_dir: Path, purpose: str) -> Generator[None]:
    """Hold `RUN/deploy.lock`; the kernel lets go of it if the process dies.

    Raises:
        DeployError: somebody else holds it, and who.
        ConfigError: the run directory is not writable.
    """
    path = run_dir / "deploy.lock"
    try:
        file = path.open("a+")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; deploying writes into the run directory") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise DeployError(
                f"{path} is held by {file.read() or 'another process'}: one deploy at a time; try again when it ends"
            ) from None
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()} ({purpose})")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
