"""Atomic writes, disk errors as `ConfigError`, and the end of a log."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from r3agent.errors import ConfigError


@contextmanager
def disk_errors(path: Path, *errors: type[Exception]) -> Generator[None]:
    """Convert write errors to a `ConfigError` that names the path.

    Args:
        errors: exceptions besides `OSError` that a library raises if it cannot write.

    Raises:
        ConfigError: the block cannot write to `path`.
    """
    try:
        yield
    except (OSError, *errors) as error:
        raise ConfigError(f"cannot write to {path}: {error}; free space or choose another directory") from error


def write_atomically(path: Path, text: str) -> None:
    """Replace a file in one step, so that readers see the old or the new content, also after a crash.

    Raises:
        ConfigError: the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def last_lines(log: str, n: int = 15) -> str:
    """Return the last lines of a log, for a message."""
    return "\n".join(log.splitlines()[-n:])
