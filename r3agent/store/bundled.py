"""Where the policy in the package is."""

from __future__ import annotations

from pathlib import Path

BUNDLED_DIR = Path(__file__).parents[1] / "serve" / "bundled" / "model"


def resolve_model(name: str) -> str:
    """The directory of `bundled`; any other directory or hub id as it is."""
    return str(BUNDLED_DIR) if name == "bundled" else name
