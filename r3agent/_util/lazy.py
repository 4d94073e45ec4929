"""Public names of a package, imported on first use.

A package lists its names once, as imports for type checkers:

    if TYPE_CHECKING:
        from r3agent.episodes.collect import collect as collect
    else:
        __getattr__, __dir__ = lazy_names(__name__)

`__all__`, `dir()`, `from package import name` and `import *` follow from these lines.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def lazy_names(
    package: str, prepare: Callable[[str], None] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make `__getattr__` and `__dir__` of a package from the imports under its `if TYPE_CHECKING:`.

    Args:
        prepare: called with each name before its import, e.g. to check that an optional dependency is installed.
    """

    @cache
    def origins() -> dict[str, str]:
        return public_names(package)

    def get(name: str) -> Any:
        if name == "__all__":
            return list(origins())
        if name in origins():
            if prepare is not None:
                prepare(name)
            value = getattr(import_module(origins()[name]), name)
        elif name.isidentifier() and not name.startswith("_") and find_spec(f"{package}.{name}"):
            return import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted({*(name for name in vars(sys.modules[package]) if name.startswith("__")), *origins()})


def public_names(package: str) -> dict[str, str]:
    """Map each name that a package imports as itself to its module: constants, classes, then functions."""
    import ast

    spec: Any = find_spec(package)
    source: str | None = spec.loader.get_source(package)
    if source is None:
        raise ImportError(f"{package} is installed without its source, which names what it offers; install the wheel")
    found = {
        alias.name: str(node.module)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }
    return dict(sorted(found.items(), key=lambda item: (not item[0].isupper(), item[0][0].islower(), item[0])))
