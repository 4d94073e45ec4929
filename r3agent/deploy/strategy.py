"""Which way a version's weights take to the server."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from r3agent.deploy.lora import LoraLoad
from r3agent.deploy.reload import WeightReload
from r3agent.deploy.server import Server
from r3agent.registry import ADAPTER_DIR, MODEL_DIR, PolicyCard, Registry

Strategy: TypeAlias = Literal["none", "lora", "reload"]
"""`none`: the server has the weights in place already."""


class Change(Protocol):
    """One way of changing a server's weights."""

    def check(self) -> None:
        """Judge the weights on disk, before the server is touched."""
        ...

    def apply(self, server: Server) -> None:
        """Bring them onto the server."""
        ...

    def undo(self, server: Server) -> str:
        """Put back what was there, after a failure; says what the server has now."""
        ...


def choose(card: PolicyCard, registry: Registry) -> tuple[Strategy, Change | None]:
    """An adapter is loaded beside the base; full weights replace what is in place, and so does the base after them."""
    if card.kind == "lora":
        return "lora", LoraLoad(card, registry.version_dir(card.version) / ADAPTER_DIR)
    if card.kind == "base" and "full" not in {registry.card(version).kind for version in registry.versions()}:
        return "none", None
    live = registry.card(registry.live) if registry.live else None
    previous = card.base_path if live is None else _weights(live, registry)
    return "reload", WeightReload(card.name, _weights(card, registry), base_model=card.base_path, previous=previous)


def _weights(card: PolicyCard, registry: Registry) -> str:
    """Directory or hub id of the model itself, without an adapter."""
    path = registry.version_dir(card.version) / MODEL_DIR if card.kind == "full" else Path(card.base_path)
    return str(path.resolve()) if card.kind == "full" or path.is_dir() else card.base_path
