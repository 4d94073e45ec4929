"""Imports by name: a user's `module:attribute`, entry points, and optional extras."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from typing import Any

from r3agent.errors import ConfigError


def load_attribute(spec: str) -> Any:
    """Import `module:attribute`; the current directory is searched first, as `python -m` does.

    Raises:
        ConfigError: the module or the attribute does not exist, or importing it failed.
    """
    module_name, _, attribute = spec.partition(":")
    if module_name.endswith(".py") or "/" in module_name:
        folder, stem = Path(module_name).parent, Path(module_name).stem
        raise ConfigError(
            f"{spec!r} names a path; name a module, {stem}:{attribute}, and "
            f"{'run where it is' if folder == Path() else f'add {folder} to PYTHONPATH'}"
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        # The missing module may be one that this module imports.
        is_absent = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        hint = f"; looked in {here} and on sys.path: run where it is, or add its folder to PYTHONPATH"
        raise ConfigError(
            f"{spec!r}: importing {module_name!r} failed: {type(error).__name__}: {error}{hint if is_absent else ''}"
        ) from error
    if not hasattr(module, attribute):
        from r3agent._util.messages import nearest  # imports pydantic

        hint = nearest(attribute, vars(module))
        raise ConfigError(f"{spec!r}: module {module_name!r} has no {attribute!r}; {hint}name one that it has")
    return getattr(module, attribute)


def source_of(spec: str) -> Path | None:
    """Return the file of the module of `module:attribute`, or `None` if it names none or has none."""
    module_name, colon, _ = spec.partition(":")
    if not colon:
        return None
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = importlib.util.find_spec(module_name)
    except (ImportError, ValueError):
        return None
    return Path(found.origin) if found and found.origin and Path(found.origin).is_file() else None


def entry_points(group: str) -> dict[str, str]:
    """Map the names of a group's installed entry points to `module:attribute`."""
    return {point.name: point.value for point in importlib.metadata.entry_points(group=group)}


def require_extra(module_name: str, extra: str) -> None:
    """Import a heavy optional dependency.

    Raises:
        ConfigError: it is not installed; the message has the install command.
    """
    try:
        importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{module_name} is not installed; pip install 'r3agent[{extra}]'") from error


def require_package(name: str, setting: str) -> None:
    """Check that the package that a setting needs is installed.

    Raises:
        ConfigError: it is not installed.
    """
    if importlib.util.find_spec(name) is None:
        raise ConfigError(f"{setting}: {name} is not installed; pip install {name}, or change the setting")


def require_installed(module_name: str, extra: str) -> None:
    """Check for an extra's package as `require_extra` does, but without importing it.

    Raises:
        ConfigError: it is not installed; the message has the install command.
    """
    if importlib.util.find_spec(module_name) is None:
        raise ConfigError(f"{module_name} is not installed; pip install 'r3agent[{extra}]'")
