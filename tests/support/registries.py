"""Registry of a run whose policy is `tiny`, and versions added to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from r3agent.store.registry import PolicyCard, Registry, create_version, write_card


def tiny_registry(run_dir: Path) -> Registry:
    """Make the registry of a run in which the base is live."""
    registry = Registry(run_dir)
    registry.add_base("tiny", "org/tiny")
    registry.set_live("v0000")
    return registry


def add(registry: Registry, version: str, kind: str) -> None:
    """Add a version without weights."""
    card = PolicyCard(version=version, name="tiny", kind=kind, base_model="org/tiny", parent="v0000")
    with create_version(registry.version_dir(version)) as directory:
        write_card(directory, card)


def go_live(registry: Registry, version: str, **where: Any) -> None:
    """Make a version live, which is added if it is not there."""
    if version not in registry.versions():
        add(registry, version, "lora")
    registry.set_live(version, **where)
