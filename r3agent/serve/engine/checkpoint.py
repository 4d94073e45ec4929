"""Which checkpoint a model's name means."""

from __future__ import annotations

import re
from pathlib import Path

from r3agent.errors import ConfigError
from r3agent.store.bundled import resolve_model

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def find_checkpoint(model: str) -> str:
    """The directory, or the hub id, of a directory, a hub id or `bundled`.

    Raises:
        ConfigError: it is neither.
    """
    path = resolve_model(model)
    if not Path(path).is_dir() and not HUB_ID.fullmatch(path):
        raise ConfigError(f"model {path}: there is no such directory; a hub id looks like organisation/name")
    return path


def served_name(model: str) -> str:
    """What a model is served as unless it is given a name: the directory's; of a hub id, the id."""
    return Path(model).resolve().name if Path(model).is_dir() else model
