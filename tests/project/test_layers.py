"""The arrows between the rooms of AGENTS.md, read from the source."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

WORDS = {"errors", "records"}
TOOLS = {"_util"}
SANDBOX = {"verifiers.sandbox"}
ENDS = {"store", "policy", "verifiers", "tasks"}
STAGES = {"train", "serve", "deploy", "evaluate"}

MAY_IMPORT: list[tuple[set[str], set[str]]] = [
    (WORDS, WORDS | {"_util"}),
    (TOOLS, {"errors"} | TOOLS),
    (ENDS, WORDS | TOOLS | ENDS),
    ({"episodes"}, WORDS | TOOLS | ENDS | {"episodes"}),
    ({"recording"}, WORDS | TOOLS | ENDS),
    ({"testing"}, WORDS | {"policy", "_util"}),
    ({"train"}, WORDS | TOOLS | {"store"}),
    ({"serve"}, WORDS | TOOLS | {"store"}),
    ({"deploy", "evaluate"}, WORDS | TOOLS | {"store"}),
    ({"doctor"}, WORDS | TOOLS | ENDS | {"deploy.server"}),
    ({"audit"}, WORDS | TOOLS | ENDS | {"doctor.wire"}),
    ({"run"}, WORDS | TOOLS | ENDS | STAGES | {"audit", "episodes"}),
    ({"cli", "__main__"}, WORDS | TOOLS | ENDS | STAGES | {"audit", "cli", "doctor", "episodes", "run"}),
    ({"__init__"}, WORDS | ENDS | {"episodes", "recording"}),
]
"""Rooms, and what their modules may import besides their own room; as in the table of AGENTS.md."""

HEAVY = {
    "torch": {"train", "serve"},
    "transformers": {"train", "serve"},
    "peft": {"train"},
    "tokenizers": {"train", "serve"},
    "accelerate": {"train"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
    "trl": {"train.grpo"},
    "reasoning_gym": {"verifiers.child.reasoning_gym"},
    "math_verify": {"verifiers.child.math_compare"},
}
"""Packages of the extras, and the rooms or modules that may import them."""


def modules() -> dict[str, ast.Module]:
    """Dotted name below `r3agent` to syntax tree; a package is its `__init__`."""
    paths = sorted((ROOT / "r3agent").rglob("*.py"))
    return {
        ".".join(path.relative_to(ROOT / "r3agent").with_suffix("").parts): ast.parse(path.read_text())
        for path in paths
    }


MODULES = modules()


def imported(module: str) -> Iterator[str]:
    """What a module imports, wherever the statement stands; `from a import b` as `a.b`."""
    package = f"r3agent.{module}".rpartition(".")[0]
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{source}.{alias.name}" for alias in node.names)


def inside(name: str, places: set[str]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def inner_imports(module: str) -> list[str]:
    return [name.removeprefix("r3agent.") for name in imported(module) if name.startswith("r3agent.")]


def test_every_module_has_a_room() -> None:
    rooms = {room for own, _ in MAY_IMPORT for room in own}
    assert {module.split(".")[0] for module in MODULES} == rooms


@pytest.mark.parametrize(("own", "allowed"), MAY_IMPORT, ids=lambda rooms: ",".join(sorted(rooms)))
def test_rooms_import_only_what_is_below_them(own: set[str], allowed: set[str]) -> None:
    wrong = [
        f"{module} imports {target}"
        for module in MODULES
        if inside(module, own)
        for target in inner_imports(module)
        if not inside(target, allowed | {module.split(".")[0]})
    ]
    assert not wrong, wrong


def test_heavy_packages_stay_in_their_rooms() -> None:
    wrong = [
        f"{module} imports {target}"
        for module in MODULES
        for target in imported(module)
        if (package := target.split(".")[0]) in HEAVY and not inside(module, HEAVY[package])
    ]
    assert not wrong, wrong


def test_no_module_imports_in_a_circle() -> None:
    arrows = {
        module: {
            known
            for target in inner_imports(module)
            for known in (target, f"{target}.__init__", target.rpartition(".")[0])
            if known in MODULES and known != module
        }
        for module in MODULES
    }
    assert len(list(TopologicalSorter(arrows).static_order())) == len(MODULES)


def required(lines: list[str]) -> set[str]:
    """The packages that requirement lines name."""
    return {re.split(r"[^\w-]", line)[0] for line in lines}


def test_core_and_command_line_load_nothing_of_the_extras() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    optional = required(extras["serve"] + extras["train"]) - required(project["dependencies"])
    assert {"torch", "trl", "transformers", "datasets", "peft"} <= optional
    script = "import json, sys, r3agent, r3agent.cli.main; print(json.dumps([*sys.modules]))"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True).stdout
    loaded = optional & set(json.loads(shown))
    assert not loaded, f"import r3agent.cli.main loads {sorted(loaded)}, which a plain install lacks"
