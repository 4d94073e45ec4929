"""Full weights, read again in place by the running server.

Needs vLLM's development routes. A failed read can leave vLLM without a working engine, so the checkpoint is compared
with the base model before the server is touched. vLLM 0.32 on CPUs keeps a packed copy of a tied output head: there,
a model with tied embeddings arrives in part, which the canary finds.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from r3agent.deploy.server import Server
from r3agent.deploy.weights import check_checkpoint
from r3agent.errors import DeployError
from r3agent.store.checkpoint import Checkpoint


@dataclass
class WeightReload:
    """Swap the weights of the server's model, in place, for those of a directory or hub id."""

    checkpoint: Checkpoint
    previous: str
    """What the server has now; it goes back if the new weights are not right."""
    previous_version: str
    changed: bool = False

    def check(self) -> None:
        check_checkpoint(self.checkpoint)

    def apply(self, server: Server) -> Server:
        if adapters := [model for model in server.models() if model.startswith(f"{self.checkpoint.card.name}@")]:
            raise DeployError(
                f"{', '.join(adapters)}: these adapters belong to the weights that would be replaced; unload them or "
                "restart the server, then deploy again"
            )
        server.pause()
        self.changed = True
        self._read(server, self.checkpoint.model, self.checkpoint.card.version)
        return server

    def undo(self, server: Server) -> str:
        if not self.changed:
            return "the server is as it was"
        try:
            server.pause()
            self._read(server, self.previous, self.previous_version)
        except DeployError as error:
            raise DeployError(f"{error}; restart the server with {self.previous}") from error
        return f"the server has the weights of {self.previous} again"

    def finish(self, server: Server) -> None:
        pass

    @staticmethod
    def _read(server: Server, weights: str, version: str) -> None:
        """On a paused server; it is resumed, whatever happens."""
        try:
            server.reload_weights(weights)
            server.reset_prefix_cache()
            server.set_weight_version(version)
        except BaseException:
            with suppress(DeployError):
                server.resume()
            raise
        server.resume()
