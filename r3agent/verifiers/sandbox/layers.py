"""Layers of the sandbox, and the remedy if a machine lacks one. Sets without isolation are refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Literal, TypeAlias

from r3agent.errors import ConfigError

Layer: TypeAlias = Literal["namespaces", "landlock", "seccomp"]

LAYERS: tuple[Layer, ...] = ("namespaces", "landlock", "seccomp")
ENOUGH: tuple[frozenset[Layer], ...] = (frozenset({"namespaces"}), frozenset({"landlock", "seccomp"}))
"""Sets of layers that isolate a program; at least one set is needed."""


def check(layers: Sequence[Layer]) -> None:
    """Check that the layers isolate a program on this machine.

    Raises:
        ConfigError: they do not, a layer is unknown, or this is not Linux.
    """
    if sys.platform != "linux":
        raise ConfigError(lacking("sandbox", f"it needs Linux, this is {sys.platform}"))
    if unknown := set(layers) - set(LAYERS):
        raise ConfigError(f"sandbox layers {sorted(unknown)} are unknown; there are {', '.join(LAYERS)}")
    if not any(enough <= set(layers) for enough in ENOUGH):
        raise ConfigError(f"sandbox layers {list(layers)} hold nothing; keep namespaces, or landlock and seccomp")


def lacking(layer: str, why: str) -> str:
    """Return the message that this machine lacks a layer, with the remedy."""
    rest = [name for name in LAYERS if name != layer]
    less = f", or go on with less: layers = {json.dumps(rest)}" if layer in LAYERS else ""
    return (
        f"this machine does not let the sandbox have its {layer}: {why}; allow it, or run in a container "
        f'with runner = "container"{less}'
    )
