"""Layers of the sandbox that this machine can have: tests that need more are skipped, and say why."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import r3agent
from r3agent.errors import ConfigError
from r3agent.verifiers.sandbox import LAYERS, Layer, run_python

WITHOUT_NAMESPACES: tuple[Layer, ...] = ("landlock", "seccomp")


def needs(layers: Sequence[Layer]) -> Any:
    """The mark of a test that runs programs in these layers."""
    why = ""
    try:
        run_python("", layers=layers)
    except ConfigError as error:
        why = str(error)
    return pytest.mark.skipif(bool(why), reason=why)


linux = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")
all_layers = needs(LAYERS)
without_namespaces = needs(WITHOUT_NAMESPACES)

_ROOT = Path(r3agent.__file__).parent
SANDBOX_ONLY = f"""
import sys, types
for name, folder in {[("r3agent", str(_ROOT)), ("r3agent.verifiers", str(_ROOT / "verifiers"))]!r}:
    package = sys.modules[name] = types.ModuleType(name)
    package.__path__ = [folder]
"""
"""The start of a script that needs the sandbox and not all of r3agent, which takes seconds to import."""
