"""Location of a policy version's weights: the base model, the version's own full weights, or an adapter on the base."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from r3agent.store.registry import ADAPTER_DIR, MODEL_DIR, PolicyCard


@dataclass(frozen=True)
class Checkpoint:
    """A model and optionally an adapter on it."""

    card: PolicyCard
    model: str
    """Directory or hub id of the model without the adapter."""
    adapter_dir: Path | None

    @classmethod
    def of(cls, card: PolicyCard, version_dir: Path) -> Checkpoint:
        """Locate the weights of a card's version; they are in `version_dir`, unless it is the base."""
        model = str(version_dir / MODEL_DIR) if card.kind == "full" else card.base_path
        return cls(card, model, version_dir / ADAPTER_DIR if card.kind == "lora" else None)

    def absolute(self) -> Checkpoint:
        """Make the paths absolute, for another process; a hub id is unchanged."""
        model, adapter_dir = Path(self.model), self.adapter_dir
        is_directory = self.card.kind == "full" or model.is_dir()
        return replace(
            self,
            model=str(model.resolve()) if is_directory else self.model,
            adapter_dir=adapter_dir and adapter_dir.resolve(),
        )
