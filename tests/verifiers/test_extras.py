"""Messages of a plain install about verifiers and sources that need more."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from r3agent.errors import ConfigError
from r3agent.tasks import find_tasks
from r3agent.verifiers import find_verifier


@pytest.mark.parametrize(
    ("verifier", "package", "extra"),
    [
        ("json_schema", "jsonschema", "verifiers"),
        ("math", "math_verify", "math"),
        ("reasoning_gym", "reasoning_gym", "reasoning-gym"),
        ("regex", "re2", "verifiers"),
    ],
)
def test_a_missing_package_is_named_with_its_extra_before_anything_is_judged(
    monkeypatch: pytest.MonkeyPatch, verifier: str, package: str, extra: str
) -> None:
    pytest.importorskip(package)
    find_verifier(verifier)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"{package} is not installed; pip install 'r3agent\[{extra}\]'"):
        find_verifier(verifier)


def test_a_source_says_so_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ConfigError, match=r"pip install 'r3agent\[reasoning-gym\]'"):
        find_tasks("reasoning-gym:gcd", 1)
    (tmp_path / "x.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'r3agent\[data\]'"):
        find_tasks(f"countdown:{tmp_path}/x.parquet")
