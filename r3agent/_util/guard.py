"""Run a command that does not outlive the process that started it.

    python guard.py PARENT_PID -- COMMAND...
    python guard.py PARENT_PID --all COMMAND...

A program of several processes survives if the one that started it is killed with SIGKILL, and keeps its port and
memory for ever. The guard runs between the two: it forwards SIGTERM, checks that the parent is alive, and kills the
command with all its processes if it is not. With `--all` it also ends what the command leaves running, in whatever
session and environment (on Linux).

It needs only the standard library and is run by its path, so that it costs 10 MB and no time.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from types import FrameType

ALL = "--all"
POLL_S = 0.5
GRACE_S = 10.0
"""Time for the command to stop before it is killed."""
STOP_S = 2.0
"""Time for what it leaves running to stop before it is killed."""
SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER of prctl(2): processes whose parents have ended become children of this one."""
LINGER_S = 10.0
"""Time for the command's processes to end after it and free shared memory, which SIGKILL would leak."""


def main(arguments: list[str]) -> int:
    """Run the command and return its exit code, or 128 + N if signal N ended it."""
    parent, mode, *command = arguments
    parent, ends_all = int(parent), mode == ALL
    if ends_all:
        with suppress(Exception):  # another system
            ctypes.CDLL(None).prctl(SUBREAPER, 1)
    if os.getpgrp() != os.getpid():
        os.setsid()  # its own group, so that it can be killed as a whole
    stopping = False

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        child = subprocess.Popen(command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    deadline = None
    while True:
        try:
            code = child.wait(POLL_S)
            break
        except subprocess.TimeoutExpired:
            pass
        orphaned = os.getppid() != parent
        if deadline is None and (stopping or orphaned):
            child.terminate()
            deadline = time.monotonic() + GRACE_S
        elif deadline is not None and time.monotonic() > deadline:
            os.killpg(0, signal.SIGKILL)  # this process too
    if ends_all:
        _end_children()
    if os.getppid() != parent:  # nobody else would kill the command's remaining processes
        time.sleep(LINGER_S)
        os.killpg(0, signal.SIGKILL)
    return code if code >= 0 else 128 - code


def _end_children() -> None:
    """End all children, and theirs, which become children of this process."""
    asked, deadline = set[int](), time.monotonic() + STOP_S
    while (children := _children()) and time.monotonic() < deadline + STOP_S:
        for pid in children:
            if (is_late := time.monotonic() > deadline) or pid not in asked:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL if is_late else signal.SIGTERM)
                asked.add(pid)
        time.sleep(0.02)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _children() -> list[int]:
    """Return the children of this process that are alive; none where there is no /proc."""
    found: list[int] = []
    with suppress(OSError):
        for name in filter(str.isdigit, os.listdir("/proc")):
            if _parent(name) == os.getpid():
                found.append(int(name))
    return found


def _parent(pid: str) -> int:
    with suppress(OSError), open(f"/proc/{pid}/stat") as stat:
        return int(stat.read().rpartition(")")[2].split()[1])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
