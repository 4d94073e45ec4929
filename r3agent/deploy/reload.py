"""Reload full weights in place, on the running server.

This needs vLLM's development routes. A failed read can leave vLLM without a working engine, so the checkpoint is
compared with the base model before the server is touched. On CPUs, vLLM 0.32 keeps a packed copy of a tied output
head, so a model with tied embeddings is updated only in part; the fingerprint detects this.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from r3agent.deploy.server import Server
from r3agent.deploy.update import UNCHANGED, WeightUpdate
from r3agent.errors import DeployError


@dataclass
class WeightReload(WeightUpdate):
    """Replace the weights of the server's model, in place, with those of a directory or hub id."""

    previous: str
    """Current weights of the server, restored if the new ones are wrong."""
    previous_version: str
    changed: bool = False

    def apply(self, server: Server) -> Server:
        card = self.checkpoint.card
        if adapters := [model for model in server.models() if model.startswith(f"{card.name}@")]:
            raise DeployError(
                f"{', '.join(adapters)}: these adapters belong to the weights that would be replaced; unload them or "
                "restart the server, then deploy again"
            )
        server.pause()
        self.changed = True
        self._reload(server, self.checkpoint.model, card.version)
        return server

    def undo(self, server: Server) -> str:
        if not self.changed:
            return UNCHANGED
        try:
            server.pause()
            self._reload(server, self.previous, self.previous_version)
        except DeployError as error:
            raise DeployError(f"{error}; restart the server with {self.previous}") from error
        return f"the server has the weights of {self.previous} again"

    @staticmethod
    def _reload(server: Server, weights: str, version: str) -> None:
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
