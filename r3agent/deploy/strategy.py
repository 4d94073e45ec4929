"""Choice of the method that loads a version's weights onto a server."""

from __future__ import annotations

from typing import Literal, TypeAlias

from r3agent.deploy.command import Command
from r3agent.deploy.config import DeployConfig
from r3agent.deploy.lora import LoraLoad
from r3agent.deploy.reload import WeightReload
from r3agent.deploy.restart import Restart
from r3agent.deploy.update import WeightUpdate
from r3agent.errors import ConfigError
from r3agent.records.versions import BASE
from r3agent.store.checkpoint import Checkpoint
from r3agent.store.registry import PolicyCard, Registry

Strategy: TypeAlias = Literal["none", "lora", "reload", "restart", "command"]
"""Method of loading the weights; `none` if the server already has them."""


def choose(card: PolicyCard, registry: Registry, config: DeployConfig) -> tuple[Strategy, WeightUpdate | None]:
    """Choose how to load a version onto a server.

    Raises:
        ConfigError: `deploy.strategy` is `command`, and `deploy.command` is empty.
    """
    checkpoint = _checkpoint(card, registry)
    if config.strategy == "restart":
        return "restart", Restart(checkpoint, registry.run_dir, timeout_s=config.timeout_s)
    if config.strategy == "command":
        if not config.command:
            raise ConfigError('deploy.strategy = "command": say which with deploy.command = ["./roll_out.sh"]')
        return "command", Command(checkpoint, config.command, timeout_s=config.timeout_s)
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
