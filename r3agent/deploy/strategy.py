"""Choice of the method that loads a version's weights onto a server."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from r3agent.deploy.command import Command
from r3agent.deploy.config import DeployConfig
from r3agent.deploy.lora import LoraLoad
from r3agent.deploy.reload import WeightReload
from r3agent.deploy.restart import Restart
from r3agent.deploy.server import Server
from r3agent.deploy.update import WeightUpdate
from r3agent.errors import ConfigError
from r3agent.records.versions import BASE
from r3agent.store.checkpoint import Checkpoint
from r3agent.store.registry import PolicyCard, Registry

Strategy: TypeAlias = Literal["none", "lora", "reload", "restart", "command"]
"""Method of loading the weights; `none` if the server already has them."""


class Choice(NamedTuple):
    """Method of loading a version onto a server."""

    strategy: Strategy
    update: WeightUpdate | None
    served_name: str
    """Name of the version there: that of the base model, if its adapter is merged."""
    merges: bool = False


def choose(card: PolicyCard, registry: Registry, config: DeployConfig, server: Server) -> Choice:
    """Choose how to load a version onto a server.

    Adapters are loaded beside the base model, unless the server takes none: then they are merged into its weights,
    which are reloaded in place.

    Raises:
        ConfigError: `deploy.strategy` is `command`, and `deploy.command` is empty.
        DeployError: the adapter is damaged.
    """
    checkpoint = _checkpoint(card, registry)
    if config.strategy == "command":
        if not config.command:
            raise ConfigError('deploy.strategy = "command": say which with deploy.command = ["./roll_out.sh"]')
        return Choice("command", Command(checkpoint, config.command, timeout_s=config.timeout_s), card.served_name)
    if checkpoint.adapter_dir is not None:
        LoraLoad(checkpoint).check()  # before the server is asked
    kinds = {registry.card(version).kind for version in registry.versions()}
    merges = card.kind == "lora" and not server.takes_adapters()
    name = card.name if merges else card.served_name
    if config.strategy == "restart":
        return Choice("restart", Restart(checkpoint, registry.run_dir, timeout_s=config.timeout_s), name, merges)
    if card.kind == "lora" and not merges:
        return Choice("lora", LoraLoad(checkpoint), name)
    if card.kind == "base" and ("full" not in kinds and ("lora" not in kinds or server.takes_adapters())):
        return Choice("none", None, name)
    live = registry.card(registry.live or BASE)
    if live.kind == "lora" and not registry.merges_adapters:  # beside the base model, or on another server
        live = registry.card(BASE)
    return Choice("reload", WeightReload(checkpoint, previous=_checkpoint(live, registry)), name, merges)


def _checkpoint(card: PolicyCard, registry: Registry) -> Checkpoint:
    return Checkpoint.of(card, registry.version_dir(card.version)).absolute()
