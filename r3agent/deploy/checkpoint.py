"""The weights of a version on disk, for the ways of deploying that hand them on as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from r3agent.deploy.weights import check_adapter, check_weights
from r3agent.store.registry import PolicyCard


@dataclass(frozen=True)
class Checkpoint:
    """A model, and an adapter on it or none."""

    card: PolicyCard
    model: str
    """Directory or hub id of the model itself, without an adapter."""
    adapter_dir: Path | None

    def check(self) -> None:
        """
        Raises:
            DeployError: a file is missing or cut short, or it belongs to another base model.
        """
        if self.adapter_dir is not None:
            check_adapter(self.adapter_dir, self.card.base_path)
        else:
            check_weights(self.model, self.card.base_path)
