"""Find installed packages that the sandbox shows to a program, with everything that they require."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from r3agent.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?", re.ASCII)


@dataclass(frozen=True)
class Packages:
    """Packages that a program may import."""

    modules: tuple[str, ...] = ()
    """Their modules, except those of the packages that they require."""
    paths: tuple[str, ...] = ()
    """Files and directories of all of them, absolute and without links."""


def find_packages(names: Sequence[str]) -> Packages:
    """Find installed packages by the name of their distribution or of a module.

    Raises:
        ConfigError: one is not installed.
    """
    modules: dict[str, None] = {}
    paths: dict[str, None] = {}
    provided = metadata.packages_distributions() if names else {}
    for name in names:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"packages: {name!r} is not the name of a package, such as 'numpy'")
        found = _required(provided.get(name) or [name])
        own = [module for module, owners in provided.items() if found and found[0].name in owners]
        own = [name] if name in own or not own else [module for module in own if module.isidentifier()]
        modules |= dict.fromkeys(module for module in own if not module.startswith("_"))
        places = [path for distribution in found for path in _paths(distribution)]
        for module in own:  # also an editable one, or one without a distribution
            places += _module_paths(module)
        if not places and name not in sys.stdlib_module_names:
            raise ConfigError(
                f"packages: {name!r} is not installed for {sys.executable}; pip install {name}, or leave it out"
            )
        paths |= dict.fromkeys(map(os.path.realpath, places))
    return Packages(tuple(modules), tuple(paths))


def _required(names: Iterable[str]) -> list[metadata.Distribution]:
    """Return the installed distributions of these names, and those that they require without their extras."""
    found: dict[str, metadata.Distribution] = {}
    left = [*names]
    while left:
        try:
            distribution = metadata.distribution(left.pop(0))
        except metadata.PackageNotFoundError:
            continue  # not installed, as its marker is for another system, or not a distribution
        if distribution.name not in found:
            found[distribution.name] = distribution
            required = [text for text in distribution.requires or () if "extra ==" not in text]
            left += [match[0] for text in required if (match := _NAME.match(text))]
    return [*found.values()]


def _paths(distribution: metadata.Distribution) -> set[str]:
    """Return the top-level files and directories of a distribution, without its scripts."""
    tops = {file.parts[0] for file in distribution.files or ()} - {"..", "/", "__pycache__"}
    located = (str(distribution.locate_file(top)) for top in tops if not top.endswith(".pth"))
    return {path for path in located if os.path.exists(path)}


def _module_paths(module: str) -> list[str]:
    spec = util.find_spec(module) if module not in sys.stdlib_module_names else None
    if spec is None:
        return []
    if spec.submodule_search_locations:
        return [str(Path(place)) for place in spec.submodule_search_locations]
    return [spec.origin] if spec.origin and os.path.exists(spec.origin) else []
