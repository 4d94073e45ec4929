"""The policy in the package: a Llama of under a million parameters that plays Countdown. See `model/README.md`."""

from __future__ import annotations

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"


def resolve_model(name: str) -> str:
    """The directory of `bundled`; any other directory or hub id as it is."""
    return str(MODEL_DIR) if name == "bundled" else name
