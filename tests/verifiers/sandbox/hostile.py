"""Running hostile programs, with an eye on what is left of them outside."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from r3agent.verifiers.sandbox import LAYERS, Layer, Limits, Outcome, run_python
from tests.support.sandbox_marks import WITHOUT_NAMESPACES, needs


def in_each(*sets: tuple[Layer, ...]) -> Any:
    return pytest.mark.parametrize("layers", [pytest.param(s, marks=needs(s), id="+".join(s)) for s in sets])


SETS: list[tuple[Layer, ...]] = [LAYERS, WITHOUT_NAMESPACES]
each_set = in_each(*SETS)

LIMITS = Limits(wall_s=20, cpu_s=10, memory_mb=256, processes=8, disk_mb=4)
SHORT = Limits(wall_s=1.5, cpu_s=10, memory_mb=256, processes=8, disk_mb=4)


def run(source: str, layers: tuple[Layer, ...] = LAYERS, limits: Limits = LIMITS) -> Outcome:
    """Run it, and see that none of its processes is left: each would have the pipe of its output open or be ours."""
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    outcome = run_python(source, layers=layers, limits=limits)
    assert {process.pid for process in psutil.Process().children(recursive=True)} <= before
    return outcome


def said(outcome: Outcome) -> str:
    assert outcome.exit_code == 0, outcome
    return outcome.stdout.decode().strip()


def is_running(name: str) -> bool:
    """Tell whether a process called so is on this machine, whoever's child it has become."""
    names: set[str] = set()
    for file in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):  # it has ended since
            names.add(file.read_text().strip())
    return name in names


NAMED = "import ctypes; ctypes.CDLL(None).prctl(15, {name!r}.encode(), 0, 0, 0)\n"
"""Gives a process a name by which it is found from outside; its children have it too."""

ATTEMPT = """
def attempt(what):
    try:
        print(what())
    except OSError:
        pass
"""
"""Says what came of it, and nothing where it is refused."""
