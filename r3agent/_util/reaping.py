"""Children that may outlive this process."""

from __future__ import annotations

import subprocess
import threading


def reap(process: subprocess.Popen[bytes]) -> None:
    """Wait for a child in a thread: it leaves no zombie if it ends, and this process can end before it.

    The thread keeps the reference without which Python warns of a running child, also while the interpreter ends.
    """
    threading.Thread(target=process.wait, name=f"wait for process {process.pid}", daemon=True).start()
