"""Reload whole weights in place, on the running server: a version's own, or the base model's with its adapter merged.

This needs vLLM's development routes. A failed read can leave vLLM without a working engine, so the checkpoint is
compared with the base model before the server is touched. On CPUs, vLLM 0.32 keeps a packed copy of a tied output
head, so full weights of a model with tied embeddings are updated only in part; the fingerprint detects this. An adapter
does not change the head.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from r3agent.deploy.merge import whole_weights
from r3agent.deploy.server import Server
from r3agent.deploy.update import UNCHANGED, WeightUpdate
from r3agent.errors import DeployError
from r3agent.store.checkpoint import Checkpoint


@dataclass
class WeightReload(WeightUpdate):
    """Replace the weights of the server's model, in place, with those of a checkpoint."""

    previous: Checkpoint
    """Current weights of the server, restored if the new ones are wrong."""
    changed: bool = False

    def apply(self, server: Server) -> Server:
        card = self.checkpoint.card
        if adapters := [model for model in server.models() if model.startswith(f"{card.name}@")]:
            raise DeployError(
                f"{', '.join(adapters)}: these adapters belong to the weights that would be replaced; unload them or "
                "restart the server, then deploy again"
            )
        with whole_weights(self.checkpoint) as weights:
            server.pause()
            self.changed = True
            replace_weights(server, weights, card.version)
        return server

    def undo(self, server: Server) -> str:
        if not self.changed:
            return UNCHANGED
        old = self.previous
        name = old.model if old.adapter_dir is None else f"{old.card.version} on {old.model}"
        try:
            with whole_weights(old) as weights:
                server.pause()
                replace_weights(server, weights, old.card.version)
        except DeployError as error:
            raise DeployError(f"{error}; restart the server with {old.model}") from error
        return f"the server has the weights of {name} again"


def replace_weights(server: Server, weights: str, version: str) -> None:
    """Read the weights while the server is paused, and always resume it."""
    try:
        server.reload_weights(weights)
        server.reset_prefix_cache()
        server.set_weight_version(version)
    except BaseException:
        with suppress(DeployError):
            server.resume()
        raise
    server.resume()
