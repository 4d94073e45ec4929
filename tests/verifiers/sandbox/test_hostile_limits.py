"""Programs that try to go over the limits of the sandbox."""

from __future__ import annotations

import signal

import pytest

from r3agent.verifiers.sandbox import Layer, Limits
from tests.support.sandbox_marks import all_layers
from tests.verifiers.sandbox.hostile import ATTEMPT, each_set, run, said


@each_set
def test_an_endless_loop_ends_at_the_limit_of_cpu(layers: tuple[Layer, ...]) -> None:
    outcome = run("while True: pass", layers, Limits(wall_s=60, cpu_s=1))
    assert (outcome.overrun, outcome.exit_code) == ("cpu", -signal.SIGXCPU)


@each_set
def test_sleeping_ends_at_the_wall_limit(layers: tuple[Layer, ...]) -> None:
    outcome = run("import time; time.sleep(60)", layers, Limits(wall_s=0.5))
    assert (outcome.overrun, outcome.exit_code) == ("wall", None)


@each_set
def test_memory_is_limited(layers: tuple[Layer, ...]) -> None:
    assert run("x = bytearray(2 ** 30)", layers).stderr.endswith(b"MemoryError\n")
    assert said(run("x = bytearray(2 ** 26); print(len(x))", layers)) == str(2**26)


@each_set
@pytest.mark.parametrize("fd", [1, 2])
def test_output_is_cut_and_its_flood_ended(layers: tuple[Layer, ...], fd: int) -> None:
    limits = Limits(wall_s=30, output_bytes=100_000)
    outcome = run(f"import os\nwhile True: os.write({fd}, b'x' * 65536)", layers, limits)
    assert outcome.overrun == "output"
    assert len((outcome.stdout, outcome.stderr)[fd - 1]) == 100_000


@each_set
def test_a_file_cannot_grow_over_the_limit(layers: tuple[Layer, ...]) -> None:
    source = "import os\nf = open('big', 'wb', buffering=0)\nfor _ in range(9): f.write(b'x' * 2 ** 20)"
    assert b"OSError: [Errno" in run(source, layers).stderr


@all_layers
def test_all_files_together_cannot_either() -> None:
    source = "for n in range(9): open(f'{n}', 'wb').write(b'x' * 2 ** 20)"
    assert run(source).stderr.endswith(b"No space left on device\n")
    assert b"Errno 28" in run("for n in range(9999): open(f'{n}', 'wb').close()").stderr


@each_set
def test_no_limit_can_be_raised_again(layers: tuple[Layer, ...]) -> None:
    source = """
import resource as r
for name in ("CPU", "AS", "FSIZE", "NOFILE", "NPROC", "CORE"):
    kind = getattr(r, f"RLIMIT_{name}")
    try:
        soft, hard = r.getrlimit(kind)
        r.setrlimit(kind, (hard + 1, hard + 1))
        print(name)
    except (OSError, ValueError):
        pass
"""
    assert said(run(source, layers)) == ""


@each_set
def test_its_keepers_are_not_limited_signalled_traced_or_written_to(layers: tuple[Layer, ...]) -> None:
    source = """
import ctypes, fcntl, os, resource
libc, pid = ctypes.CDLL(None, use_errno=True), os.getppid()
attempt(lambda: resource.prlimit(pid, resource.RLIMIT_AS, (0, 0)))
attempt(lambda: open(f"/proc/{pid}/mem", "wb"))
attempt(lambda: open("/proc/self/mem", "wb"))
attempt(lambda: open("/dev/shm/out", "w"))
if libc.ptrace(16, pid, 0, 0) == 0:
    print("traced")
"""
    own = """
reading, writing = os.pipe()
for what in (lambda: fcntl.fcntl(reading, fcntl.F_SETOWN, pid), lambda: fcntl.fcntl(reading, 10, 9),
             lambda: fcntl.fcntl(reading, 15, bytes(8)), lambda: fcntl.ioctl(reading, 0x8901, bytes(4))):
    attempt(what)
fcntl.fcntl(reading, fcntl.F_SETFL, fcntl.fcntl(reading, fcntl.F_GETFL) | os.O_NONBLOCK)
"""
    # In its own namespace it can name nobody whom a descriptor would signal but its keeper, which is deaf.
    assert said(run(ATTEMPT + source + ("" if "namespaces" in layers else own), layers)) == ""
