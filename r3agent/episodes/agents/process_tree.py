"""Processes of one program, found by their session, a mark in their environment, and their parents.

A new session and a double fork do not remove the mark, and an empty environment is in the session. A process with both
a session and an environment of its own has a parent of these, at last the guard; see `r3agent._util.guard`.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
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
        is_over: returns True if they are to be ended.
    """

    def __init__(self, memory_mb: int | None, is_over: Callable[[], bool]) -> None:
        self.mark = new_id()
        self.session = -1
        """Id of the session, which is that of its first process."""
        self.overrun = False
        """True if they were ended because they used more memory."""
        self._memory_mb = memory_mb
        self._is_over = is_over

    def pids(self) -> list[int]:
        """Return the processes that are alive."""
        wanted = f"{MARK}={self.mark}".encode()
        every = {
            int(entry.name): _parent_and_session(entry) for entry in Path("/proc").iterdir() if entry.name.isdigit()
        }
        alive = {pid: found for pid, found in every.items() if found is not None}
        own = {pid for pid, (_, session) in alive.items() if session == self.session or _has(pid, wanted)}
        while more := {pid for pid, (parent, _) in alive.items() if parent in own} - own:
            own |= more
        return sorted(own)

    async def watch(self) -> None:
        """End them when they use more memory than they may, or when it is over."""
        while True:
            await asyncio.sleep(POLL_S)
            if self._memory_mb is not None and await asyncio.to_thread(self._used_mb) > self._memory_mb:
                self.overrun = True
            if self.overrun or self._is_over():
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


def _has(pid: int, wanted: bytes) -> bool:
    with suppress(OSError):  # it has ended, or is another user's
        return wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return False


def _parent_and_session(process: Path) -> tuple[int, int] | None:
    """Return the parent and the session of a process that is alive; a zombie has ended."""
    with suppress(OSError, ValueError):
        state, parent, _, session, *_ = (process / "stat").read_text().rpartition(")")[2].split()
        return None if state == "Z" else (int(parent), int(session))
    return None


def _resident_mb(pid: int) -> float:
    with suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_MB
    return 0.0
