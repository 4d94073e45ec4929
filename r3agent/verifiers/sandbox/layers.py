"""Layers of the sandbox, and the remedy on a machine that lacks one. Sets that hold nothing are refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Literal, TypeAlias

from r3agent.errors import ConfigError

Layer: TypeAlias = Literal["namespaces", "landlock", "seccomp"]

LAYERS: tuple[Layer, ...] = ("namespaces", "landlock", "seccomp")
ENOUGH: tuple[frozenset[Layer], ...] = (frozenset({"namespaces"}), frozenset({"landlock", "seccomp"}))
"""Sets of layers of which one at least is needed to hold a program."""


def check(layers: Sequence[Layer]) -> None:
    """Check that the layers hold a program here.

    Raises:
        ConfigError: they do not, there is no such layer, or this is not Linux.
    """
    if sys.platform != "linux":
        raise ConfigError(lacking("sandbox", f"it needs Linux, this is {sys.platform}"))
    if unknown := set(layers) - set(LAYERS):
        raise ConfigError(f"sandbox layers {sorted(unknown)} are unknown; there are {', '.join(LAYERS)}")
    if not any(enough <= set(layers) for enough in ENOUGH):
        raise ConfigError(f"sandbox layers {list(layers)} hold nothing; keep namespaces, or landlock and seccomp")


def lacking(layer: str, why: str) -> str:
    """Return the message that this machine lacks a layer, with what helps."""
    rest = [name for name in LAYERS if name != layer]
    less = f", or go on with less: layers = {json.dumps(rest)}" if layer in LAYERS else ""
    return (
        f"this machine does not let the sandbox have its {layer}: {why}; allow it, or run in a container "
        f'with runner = "container"{less}'
    )
