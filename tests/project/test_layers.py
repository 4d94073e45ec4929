"""The contracts between rooms in pyproject.toml, the table of AGENTS.md beside them, and what they cannot say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import grimp

ROOT = Path(__file__).parents[2]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_contracts_between_rooms_hold() -> None:
    script = "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])"
    lint = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=False, text=True)
    assert lint.returncode == 0, lint.stdout + lint.stderr


def test_rooms_of_agents_md_are_those_of_the_contract() -> None:
    (contract,) = [one for one in PYPROJECT["tool"]["importlinter"]["contracts"] if one["id"] == "rooms"]
    floors = [set(re.findall(r"\w+", layer)) for layer in contract["layers"]]
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", (ROOT / "AGENTS.md").read_text(), re.MULTILINE)
    table = {int(floor): set(re.findall(r"`(\w+)", rooms)) for floor, rooms in rows}
    assert table == dict(zip(range(len(floors), 0, -1), floors, strict=True))


def test_paths_in_agents_md_exist() -> None:
    paths = re.findall(r"`([\w./-]+(?:/|\.(?:py|md|toml|json)))`", (ROOT / "AGENTS.md").read_text())
    assert len(paths) > 30
    gone = [path for path in paths if not ((ROOT / path).exists() or (ROOT / "r3agent" / path).exists())]
    assert not gone, gone


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = grimp.build_graph("r3agent", cache_dir=None)
    arrows = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(list(TopologicalSorter(arrows).static_order())) == len(arrows) > 100


def required(lines: list[str]) -> set[str]:
    """The packages that requirement lines name."""
    return {re.split(r"[^\w-]", line)[0] for line in lines}


def test_core_and_command_line_load_nothing_of_the_extras() -> None:
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    optional = required(extras["serve"] + extras["train"]) - required(project["dependencies"])
    assert {"torch", "trl", "transformers", "datasets", "peft"} <= optional
    script = "import json, sys, r3agent, r3agent.cli.main; print(json.dumps([*sys.modules]))"
    modules = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True).stdout
    loaded = optional & set(json.loads(modules))
    assert not loaded, f"import r3agent.cli.main loads {sorted(loaded)}, which a plain install lacks"
