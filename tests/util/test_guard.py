"""A server goes when its owner is gone, with all it has started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from r3agent._util import guard

FAMILY = """
import os, signal, subprocess, sys, time
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(60)"])
if "ends" in sys.argv:
    sys.exit(7)
time.sleep(60)
"""
"""A command that starts another."""
OWNER = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-I", sys.argv[1], str(os.getpid()), "--", sys.executable, "-c", *sys.argv[2:]])
time.sleep(60)
"""


def guarded(*command: str, parent: int | None = None) -> subprocess.Popen[str]:
    words = [sys.executable, "-I", guard.__file__, str(parent or os.getpid()), "--", *command]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def family(process: psutil.Process | subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def test_the_exit_code_is_the_commands() -> None:
    with guarded(sys.executable, "-c", "import sys; sys.exit(3)") as process:
        assert process.wait(30) == 3
    with guarded(sys.executable, "-c", "import os; os.kill(os.getpid(), 9)") as process:
        assert process.wait(30) == 128 + 9
    with guarded("/no/such/program") as process:
        assert process.communicate(timeout=30)[1] == "/no/such/program: No such file or directory\n"
        assert process.returncode == 127


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_passed_on(number: int, tmp_path: Path) -> None:
    code = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); print(1, flush=True)"
    with guarded(sys.executable, "-c", f"{code}; time.sleep(60)") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        assert process.wait(30) == 5


@pytest.mark.parametrize("kind", ["obeys", "ends", "deaf"])
def test_an_owner_that_was_killed_leaves_nothing(kind: str) -> None:
    words = [sys.executable, "-c", OWNER, guard.__file__, FAMILY, kind]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
        left = family(owner)
        owner.kill()
        _, alive = psutil.wait_procs(left, guard.GRACE_S + guard.LINGER_S + 30)
        assert not alive
