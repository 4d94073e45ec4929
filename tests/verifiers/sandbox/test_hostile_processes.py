"""Processes that try to get out of the sandbox, or to outlive it. Looked for from outside."""

from __future__ import annotations

import os
import sys

import psutil
import pytest

from r3agent._util.wait import wait_until
from r3agent.verifiers.sandbox import Layer
from tests.support.sandbox_marks import SANDBOX_ONLY, WITHOUT_NAMESPACES, all_layers, without_namespaces
from tests.verifiers.sandbox.hostile import LIMITS, NAMED, SHORT, each_set, is_running, run, said


@all_layers
def test_the_limit_on_processes_is_in_force_and_a_fork_bomb_ends_at_it() -> None:
    n_tries = 64  # bounded, so that this test is safe where the limit were not in force
    source = f"""
import os, time
made = 0
for _ in range({n_tries}):
    try:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        made += 1
    except BlockingIOError:
        break
print(made)
"""
    made = int(said(run(source)))
    assert 1 <= made <= LIMITS.processes + 2

    bomb = (
        NAMED.format(name="r3bomb")
        + "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    )
    assert run(bomb, limits=SHORT).overrun == "wall"
    assert not is_running("r3bomb")


@without_namespaces
def test_without_namespaces_no_process_can_be_made() -> None:
    assert run("import os; os.fork()", WITHOUT_NAMESPACES).stderr.endswith(b"Operation not permitted\n")
    assert (
        said(
            run("import threading as t; x = t.Thread(target=print, args=(7,)); x.start(); x.join()", WITHOUT_NAMESPACES)
        )
        == "7"
    )


@all_layers
@pytest.mark.parametrize("ending", ["", "time.sleep(60)"], ids=["that leaves them behind", "over the wall limit"])
def test_daemons_of_a_double_fork_die_with_the_program(ending: str) -> None:
    source = (
        NAMED.format(name="r3daemon")
        + f"""
import os, signal, time
for _ in range(2):
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        if os.fork() == 0:
            os.setpgid(0, 0)
            os.write(writing, b"up")
            for fd in range(3):
                os.close(fd)
            time.sleep(60)
        os._exit(0)
    os.read(reading, 2)
print("up")
{ending}
"""
    )
    outcome = run(source, limits=SHORT if ending else LIMITS)
    if not ending:
        assert said(outcome) == "up"
    assert outcome.overrun == ("wall" if ending else None)
    assert not is_running("r3daemon")


@each_set
def test_no_handler_and_no_mask_keeps_a_program_alive(layers: tuple[Layer, ...]) -> None:
    source = (
        NAMED.format(name="r3deaf")
        + """
import signal, time
for number in set(range(1, 65)) - {signal.SIGKILL, signal.SIGSTOP, 32, 33}:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
while True:
    time.sleep(1)
"""
    )
    assert run(source, layers, SHORT).overrun == "wall"
    assert not is_running("r3deaf")


@each_set
def test_it_cannot_signal_or_see_processes_outside(layers: tuple[Layer, ...]) -> None:
    source = f"""
import os
for pid in ({os.getpid()}, os.getppid(), 1, -1):
    try:
        os.kill(pid, 0 if pid != -1 else 18)
        print("reached", pid)
    except OSError:
        pass
for path in ("/proc", "/proc/{os.getpid()}/environ", "/proc/self/environ"):
    try:
        print(os.listdir(path) if path == "/proc" else open(path).read())
    except OSError:
        pass
"""
    # In its own namespace process 1 and the parent are its keeper's, which no signal from inside reaches.
    allowed = {"reached 1", "reached -1"} if "namespaces" in layers else set()
    assert set(said(run(source, layers)).splitlines()) <= allowed


@all_layers
def test_killing_its_keeper_does_nothing() -> None:
    source = (
        "import os, signal\nfor n in (9, 19, 2, 15):\n    try: os.kill(1, n)\n    except OSError: pass\nprint('here')"
    )
    assert said(run(source)) == "here"


@all_layers
def test_the_program_dies_when_who_started_it_is_killed() -> None:
    program = NAMED.format(name="r3orphan") + "import time; time.sleep(200)"
    starter = (
        f"from r3agent.verifiers.sandbox import run_python, Limits; run_python({program!r}, limits=Limits(wall_s=200))"
    )
    with psutil.Popen([sys.executable, "-c", SANDBOX_ONLY + starter]) as process:
        try:
            assert wait_until(lambda: is_running("r3orphan"), timeout_s=90)
        finally:
            process.kill()
    assert wait_until(lambda: not is_running("r3orphan"), timeout_s=100)
