"""Processes of one program, found by their session, and by a mark in their environment.

A new session and a double fork do not remove the mark, and an empty environment is in the session. A process that has
both a session and an environment of its own is not found.
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path

from r3agent._util.wait import wait_until
from r3agent.records.trajectory import new_id

MARK = "R3_TRY"
"""Environment variable with the mark."""
POLL_S = 0.25
GRACE_S = 2.0
"""Time for processes to stop before they are killed."""
PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 2**20


class ProcessTree:
    """Processes that have the mark of this object; needs /proc, as Linux has it.

    Args:
        memory_mb: limit of the memory of all of them.
    """

    def __init__(self, memory_mb: int | None) -> None:
        self.mark = new_id()
        self.session = -1
        """Id of the session, which is that of its first process."""
        self.overrun = False
        """True if they were ended because they used more memory."""
        self._memory_mb = memory_mb

    def pids(self) -> list[int]:
        """Return the processes that are alive."""
        wanted = f"{MARK}={self.mark}".encode()
        every = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return [int(entry.name) for entry in every if _has(entry, wanted) or _session_of(entry) == self.session]

    async def watch(self) -> None:
        """End them when they use more memory than they may."""
        while self._memory_mb is not None:
            await asyncio.sleep(POLL_S)
            if await asyncio.to_thread(self._used_mb) > self._memory_mb:
                self.overrun = True
                self._send(signal.SIGKILL)

    def end(self) -> None:
        """End all of them, and those that they start meanwhile."""
        self._send(signal.SIGTERM)
        if not wait_until(lambda: not self.pids(), timeout_s=GRACE_S, poll_s=0.02):
            wait_until(lambda: not self._send(signal.SIGKILL), timeout_s=GRACE_S, poll_s=0.02)

    def _send(self, number: signal.Signals) -> list[int]:
        pids = self.pids()
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        return pids

    def _used_mb(self) -> float:
        return sum(map(_resident_mb, self.pids()))


def _has(process: Path, wanted: bytes) -> bool:
    with suppress(OSError):  # it has ended, or is another user's
        return wanted in (process / "environ").read_bytes().split(b"\0")
    return False


def _session_of(process: Path) -> int | None:
    """Return the session of a process that is alive; a zombie has ended."""
    with suppress(OSError, ValueError):
        state, _, _, session, *_ = (process / "stat").read_text().rpartition(")")[2].split()
        return None if state == "Z" else int(session)
    return None


def _resident_mb(pid: int) -> float:
    with suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_MB
    return 0.0
