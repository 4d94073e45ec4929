"""Base class of the methods that load a version's weights onto a server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from r3agent.deploy.fingerprint import FingerprintReport
from r3agent.deploy.server import Server
from r3agent.deploy.weights import check_adapter, check_weights
from r3agent.store.checkpoint import Checkpoint

UNCHANGED = "the server is as it was"


@dataclass
class WeightUpdate(ABC):
    """Update of one server to the weights of a checkpoint."""

    checkpoint: Checkpoint

    def check(self) -> None:
        """Check the weights on disk before the server is touched.

        Raises:
            DeployError: a file is missing or cut short, or it belongs to another base model.
        """
        if self.checkpoint.adapter_dir is not None:
            check_adapter(self.checkpoint.adapter_dir, self.checkpoint.card.base_path)
        else:
            check_weights(self.checkpoint.model, self.checkpoint.card.base_path)

    @abstractmethod
    def apply(self, server: Server) -> Server:
        """Load the weights; return the server that has them."""

    def confirm(self, report: FingerprintReport | None) -> None:  # noqa: B027
        """Judge the fingerprint's report, `None` without a fingerprint; most updates accept it.

        Raises:
            DeployError: the server may have other weights.
        """

    @abstractmethod
    def undo(self, server: Server) -> str:
        """Restore the server after a failure; return a message about its state."""

    def finish(self, server: Server) -> None:  # noqa: B027
        """Clean up after the live pointer has moved; most updates have nothing to do."""
