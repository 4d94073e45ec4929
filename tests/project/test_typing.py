"""An application's type checker: a file that uses every public name passes pyright's strict mode."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.project.test_surface import ALSO_PUBLIC, SURFACE

USER = Path(__file__).parent / "typing" / "user.py"


def imported_by_the_user() -> set[tuple[str, str]]:
    nodes = ast.walk(ast.parse(USER.read_text()))
    return {
        (node.module or "", alias.name) for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names
    }


@pytest.mark.parametrize(("module", "names"), (SURFACE | ALSO_PUBLIC).items(), ids=(SURFACE | ALSO_PUBLIC).keys())
def test_user_uses_every_public_name(module: str, names: list[str]) -> None:
    """That what is imported is also used, pyright sees to."""
    missing = {(module, name) for name in names} - imported_by_the_user()
    assert not missing, f"use it in {USER}"


def test_package_says_that_it_is_typed() -> None:
    assert (USER.parents[3] / "r3agent" / "py.typed").exists()


def test_user_passes_a_strict_type_check() -> None:
    words = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--project", str(USER.parent)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 errors, 0 warnings" in done.stdout
