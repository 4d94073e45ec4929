"""An application's type checker: a file that uses every public name passes pyright's strict mode."""

from __future__ import annotations

import subprocess
import sys

from tests.project.test_surface import USER


def test_package_says_that_it_is_typed() -> None:
    assert (USER.parents[3] / "r3agent" / "py.typed").exists()


def test_user_passes_a_strict_type_check() -> None:
    words = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--project", str(USER.parent)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 errors, 0 warnings" in done.stdout
