"""Limits of a program, and its outcome."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from r3agent.errors import ConfigError

Overrun: TypeAlias = Literal["wall", "cpu", "output"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one program."""

    wall_s: float = 10.0
    """Seconds from start to end."""
    cpu_s: int = 10
    """Seconds of CPU time of each process."""
    memory_mb: int = 512
    """Address space of each process."""
    processes: int = 8
    """Number of processes and threads, including the first."""
    disk_mb: int = 16
    """Size of all its files, which are in memory; without namespaces, size of each file."""
    open_files: int = 64
    output_bytes: int = 1 << 20
    """Length of stdout and of stderr, each."""

    def __post_init__(self) -> None:
        least = {"wall_s": 0.0, "cpu_s": 1, "memory_mb": 64, "processes": 1, "disk_mb": 1, "open_files": 8}
        for name, lowest in {**least, "output_bytes": 1}.items():
            value = getattr(self, name)
            if not (value > lowest or (value == lowest and lowest)):
                raise ConfigError(f"{name} = {value!r}: give the sandbox {lowest or 'more than 0'}")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Outcome of a program."""

    exit_code: int | None = None
    """Negative signal number if a signal ended it; `None` if the limit of wall time or output did."""
    overrun: Overrun | None = None
    """Limit that ended it; running out of memory is a `MemoryError` inside it."""
    stdout: bytes = b""
    stderr: bytes = b""
    cpu_s: float = 0.0
    wall_s: float = 0.0
