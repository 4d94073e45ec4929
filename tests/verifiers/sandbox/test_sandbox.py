from __future__ import annotations

import os
import random
import subprocess
import sys
from typing import Any

import pytest

from r3agent.errors import ConfigError, VerifierError
from r3agent.verifiers.sandbox import LAYERS, Limits, run_dialogue, run_python
from tests.support.sandbox_marks import SANDBOX_ONLY, all_layers, linux, without_namespaces

HELD = [pytest.param({}, marks=all_layers, id="sandbox"), pytest.param({"command": [sys.executable]}, id="command")]
each = pytest.mark.parametrize("held", HELD)


@each
def test_a_program_reads_prints_and_exits(held: dict[str, Any]) -> None:
    source = (
        "import sys\ndata = sys.stdin.buffer.read()\nprint(data[::-1].decode())\nsys.stderr.write('e')\nsys.exit(3)"
    )
    outcome = run_python(source, stdin=b"abc", **held)
    assert (outcome.exit_code, outcome.stdout, outcome.stderr) == (3, b"cba\n", b"e")
    assert outcome.overrun is None


@each
def test_what_it_does_wrong_is_its_own(held: dict[str, Any]) -> None:
    outcome = run_python("print('a')\n1 / 0", **held)
    assert (outcome.exit_code, outcome.stdout) == (1, b"a\n")
    assert outcome.stderr.endswith(b"ZeroDivisionError: division by zero\n")
    assert run_python("def", **held).exit_code == 1


@all_layers
def test_the_standard_library_is_there() -> None:
    source = """
import asyncio, collections, ctypes, dataclasses, datetime, decimal, fractions, hashlib, heapq, itertools, json
import random, re, sqlite3, statistics, string, tempfile, threading, typing, unittest, zoneinfo

async def main():
    return await asyncio.to_thread(lambda: 5)

@dataclasses.dataclass
class Point:
    x: int

print(Point(asyncio.run(main())), sqlite3.connect(":memory:").execute("select 6").fetchone())
"""
    outcome = run_python(source)
    assert outcome.stdout == b"Point(x=5) (6,)\n", outcome


@each
def test_a_dialogue_goes_on_until_the_first_has_ended(held: dict[str, Any]) -> None:
    first = "print(20, flush=True)\nimport sys\nsys.stderr.write(input())"
    second = "print(int(input()) + 1, flush=True)\nimport sys\nsys.stdin.read()"
    outcomes = run_dialogue(first, second, limits=Limits(wall_s=30), **held)
    assert (outcomes[0].exit_code, outcomes[0].stderr) == (0, b"21")


@each
def test_a_dialogue_with_one_who_is_silent_ends(held: dict[str, Any]) -> None:
    first, second = run_dialogue("input()", "import time; time.sleep(60)", limits=Limits(wall_s=1.0), **held)
    assert "wall" in (first.overrun, second.overrun)


def test_limits_hold_for_a_command_too() -> None:
    held: dict[str, Any] = {"command": [sys.executable]}
    assert run_python("import time; time.sleep(60)", limits=Limits(wall_s=0.5), **held).overrun == "wall"
    assert run_python("x = bytearray(2 ** 30)", **held).stderr.endswith(b"MemoryError\n")
    outcome = run_python("while True: print('x' * 1000)", limits=Limits(output_bytes=5000, wall_s=30), **held)
    assert (outcome.overrun, len(outcome.stdout)) == ("output", 5000)


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        (["landlock"], "hold nothing; keep namespaces, or landlock and seccomp"),
        ([], "hold nothing"),
        ([*LAYERS, "luck"], r"\['luck'\] are unknown; there are namespaces, landlock, seccomp"),
    ],
)
@linux
def test_layers_that_hold_nothing_are_refused(layers: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        run_python("", layers=layers)


NO_NAMESPACES = """{start}
import ctypes, struct
from r3agent.errors import ConfigError
from r3agent.verifiers.sandbox import run_python

filters = [(0x20, 0, 0, 0), (0x15, 0, 1, {unshare}), (6, 0, 0, 0x50001), (6, 0, 0, 0x7FFF0000)]
code = b"".join(struct.pack("=HBBI", *line) for line in filters)
program = struct.pack("@HP", len(filters), ctypes.addressof(held := ctypes.create_string_buffer(code)))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program) == 0
try:
    run_python("")
except ConfigError as error:
    print(error)
print(run_python("print(7)", layers=["landlock", "seccomp"]).stdout)
"""
"""A machine where a user may make no namespace: this process and its children may not."""


@without_namespaces
def test_a_layer_that_the_machine_lacks_is_named_with_what_helps() -> None:
    script = NO_NAMESPACES.format(start=SANDBOX_ONLY, unshare={"x86_64": 272, "aarch64": 97}[os.uname().machine])
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "have its namespaces: [Errno 1] unshare: Operation not permitted" in said
    assert 'runner = "container"' in said
    assert 'or go on with less: layers = ["landlock", "seccomp"]' in said
    assert said.endswith("b'7\\n'\n")


def test_a_command_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="sandbox command r3-no-such-thing: No such file"):
        run_python("", command=["r3-no-such-thing"])


def test_a_program_too_long_for_a_command_line_is_refused() -> None:
    noise = random.Random(0).randbytes(200_000).hex()
    with pytest.raises(VerifierError, match="a container's command takes 120000"):
        run_python(f"x = {noise!r}", command=[sys.executable])


@pytest.mark.parametrize(
    ("field", "value"),
    [("wall_s", 0), ("cpu_s", 0), ("memory_mb", 63), ("processes", 0), ("disk_mb", 0), ("output_bytes", 0)],
)
def test_limits_that_nothing_can_keep_are_refused(field: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{field} = {value}"):
        Limits(**{field: value})
