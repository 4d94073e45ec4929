"""The exact versions that development and CI install fit what pyproject.toml asks for."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pinned(name: str) -> dict[str, str]:
    """Names to versions of a list in `requirements/`."""
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.lstrip().startswith("#")]
    versions = {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in requirements}
    assert all(version and version[0].isdigit() for version in versions.values())
    return versions


@pytest.mark.parametrize(("name", "extras"), [("dev.txt", ("serve", "train", "dev", "docs")), ("studio.txt", ())])
def test_lists_have_what_pyproject_asks_for(name: str, extras: tuple[str, ...]) -> None:
    versions = pinned(name)
    asked = [*PROJECT["dependencies"], *(one for extra in extras for one in PROJECT["optional-dependencies"][extra])]
    wrong = [
        f"{one}, not {version}"
        for one in map(Requirement, asked)
        if not one.specifier.contains(version := versions.get(canonicalize_name(one.name), "0"))
    ]
    assert not wrong, f"make lock: {wrong}"


def test_studio_and_optional_versions_are_those_of_development() -> None:
    development = pinned("dev.txt")
    for name in ("studio.txt", "optional.txt"):
        for package, version in pinned(name).items():
            assert development.get(package, version) == version, f"make lock: {package} in {name}"
