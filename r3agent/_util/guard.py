"""Run a command that does not outlive the process that started it.

    python guard.py PARENT_PID -- COMMAND...

A program of several processes survives if the one that started it is killed with SIGKILL, and keeps its port and
memory for ever. The guard runs between the two: it forwards SIGTERM, checks that the parent is alive, and kills the
command with all its processes if it is not.

It needs only the standard library and is run by its path, so that it costs 10 MB and no time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import FrameType

POLL_S = 0.5
GRACE_S = 10.0
"""Time for the command to stop before it is killed."""
LINGER_S = 10.0
"""Time for the command's processes to end after it and free shared memory, which SIGKILL would leak."""


def main(arguments: list[str]) -> int:
    """Run the command and return its exit code, or 128 + N if signal N ended it."""
    parent, command = int(arguments[0]), arguments[2:]
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
    if os.getppid() != parent:  # nobody else would kill the command's remaining processes
        time.sleep(LINGER_S)
        os.killpg(0, signal.SIGKILL)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
