"""Which way a version's weights take to the server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias

from r3agent.deploy.command import Command
from r3agent.deploy.lora import LoraLoad
from r3agent.deploy.reload import WeightReload
from r3agent.deploy.restart import Restart
from r3agent.deploy.server import Server
from r3agent.errors import ConfigError
from r3agent.records.versions import BASE
from r3agent.store.checkpoint import Checkpoint
from r3agent.store.registry import PolicyCard, Registry

Wanted: TypeAlias = Literal["auto", "restart", "command"]
"""`auto`: an adapter is loaded beside the base, full weights are reloaded in place. `restart`: a server that
`r3agent serve --run` supervises is replaced by a new one on another port. `command`: the user's own script does it."""

Strategy: TypeAlias = Literal["none", "lora", "reload", "restart", "command"]
"""`none`: the server has the weights in place already."""


class Change(Protocol):
    """One way of changing a server's weights."""

    def check(self) -> None:
        """Judge the weights on disk, before the server is touched."""
        ...

    def apply(self, server: Server) -> Server:
        """Bring them onto the server; returns the one that has them now."""
        ...

    def undo(self, server: Server) -> str:
        """Put back what was there, after a failure; says what the server has now."""
        ...

    def finish(self, server: Server) -> None:
        """Clear away what was there before, once the live pointer has moved."""
        ...


def choose(
    card: PolicyCard,
    registry: Registry,
    *,
    wanted: Wanted = "auto",
    command: Sequence[str] = (),
    timeout_s: float = 600.0,
) -> tuple[Strategy, Change | None]:
    """How this version gets onto a server.

    Raises:
        ConfigError: `command` and no script to run.
    """
    checkpoint = _checkpoint(card, registry)
    if wanted == "restart":
        return "restart", Restart(checkpoint, registry.run_dir, timeout_s=timeout_s)
    if wanted == "command":
        if not command:
            raise ConfigError('deploy.strategy = "command": say which with deploy.command = ["./roll_out.sh"]')
        return "command", Command(tuple(command), checkpoint, timeout_s=timeout_s)
    if card.kind == "lora":
        return "lora", LoraLoad(checkpoint)
    if card.kind == "base" and "full" not in {registry.card(version).kind for version in registry.versions()}:
        return "none", None
    live = registry.card(registry.live) if registry.live else None
    return "reload", WeightReload(
        checkpoint,
        previous=card.base_path if live is None else _checkpoint(live, registry).model,
        previous_version=BASE if live is None or live.kind == "lora" else live.version,
    )


def _checkpoint(card: PolicyCard, registry: Registry) -> Checkpoint:
    return Checkpoint.of(card, registry.version_dir(card.version)).absolute()
