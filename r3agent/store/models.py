"""Names of models: `bundled`, `bundled-steps`, a checkpoint directory or a hub id."""

from __future__ import annotations

import re
from pathlib import Path

from r3agent.errors import ConfigError

BUNDLED_DIR = Path(__file__).parents[1] / "serve" / "bundled" / "model"
STEPS_DIR = BUNDLED_DIR.with_name("steps")
BUNDLED = {"bundled": BUNDLED_DIR, "bundled-steps": STEPS_DIR}
"""Policies in the package: the second plays by tool calls."""
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def resolve_model(name: str) -> str:
    """Return the directory of a policy in the package, or any other directory or hub id unchanged."""
    return str(BUNDLED.get(name, name))


def find_checkpoint(model: str) -> str:
    """Return the directory or hub id of a model.

    Raises:
        ConfigError: it is not a directory and does not look like a hub id.
    """
    path = resolve_model(model)
    if not Path(path).is_dir() and not HUB_ID.fullmatch(path):
        raise ConfigError(f"model {path}: there is no such directory; a hub id looks like organisation/name")
    return path


def default_name(model: str) -> str:
    """Return the default served name of a model: the name of its directory, or its hub id."""
    return Path(model).resolve().name if Path(model).is_dir() else model
