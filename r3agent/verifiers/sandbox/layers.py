"""What may hold a program, and what to do on a machine that lacks it. Sets that hold nothing are refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Literal, TypeAlias

from r3agent.errors import ConfigError

Layer: TypeAlias = Literal["namespaces", "landlock", "seccomp"]

LAYERS: tuple[Layer, ...] = ("namespaces", "landlock", "seccomp")
ENOUGH: tuple[frozenset[Layer], ...] = (frozenset({"namespaces"}), frozenset({"landlock", "seccomp"}))
"""Sets of layers of which one at least has to be there for a program to be held."""


def check(layers: Sequence[Layer]) -> None:
    if sys.platform != "linux":
        raise ConfigError(lacking("sandbox", f"it needs Linux, this is {sys.platform}"))
    if unknown := set(layers) - set(LAYERS):
        raise ConfigError(f"sandbox layers {sorted(unknown)} are unknown; there are {', '.join(LAYERS)}")
    if not any(enough <= set(layers) for enough in ENOUGH):
        raise ConfigError(f"sandbox layers {list(layers)} hold nothing; keep namespaces, or landlock and seccomp")


def lacking(layer: str, why: str) -> str:
    rest = [name for name in LAYERS if name != layer]
    less = f", or go on with less: layers = {json.dumps(rest)}" if layer in LAYERS else ""
    return (
        f"this machine does not let the sandbox have its {layer}: {why}; allow it, run in a container with "
        f'command = ["docker", "run", "--rm", "-i", "--network", "none", "IMAGE", "python"]{less}'
    )
