"""Every example runs as it stands, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
SAYS = {
    "01_one_episode.py": "attempt  ",
    "02_your_own_verifier.py": "True",
    "03_collect_and_look.py": "groups to learn from",
    "04_in_an_application.py": "retry: ",
}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example(example: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", str(example)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert SAYS[example.name] in done.stdout
