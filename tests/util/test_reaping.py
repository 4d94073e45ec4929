"""Children that may outlive this process: it ends without a warning, and they leave no zombie."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress

import psutil

from r3agent._util.reaping import reap
from r3agent._util.wait import wait_until

OUTLIVED = """
import subprocess, sys
from r3agent._util.reaping import reap
child = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
reap(child)
print(child.pid)
"""


def test_reap_lets_a_process_end_before_its_child() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", OUTLIVED], capture_output=True, text=True, check=True)
    child = psutil.Process(int(done.stdout))
    child.kill()
    assert done.stderr == ""


def test_reap_leaves_no_zombie() -> None:
    child = subprocess.Popen(["true"])
    reap(child)
    with suppress(psutil.NoSuchProcess):
        assert wait_until(lambda: not psutil.pid_exists(child.pid), timeout_s=60)
