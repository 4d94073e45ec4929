"""Location of a policy version's weights: the base model, full weights of its own, or an adapter on the base."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from r3agent.store.registry import ADAPTER_DIR, MODEL_DIR, PolicyCard


@dataclass(frozen=True)
class Checkpoint:
    """A model, and the adapter on it, if there is one."""

    card: PolicyCard
    model: str
    """Directory or hub id of the model itself, without an adapter."""
    adapter_dir: Path | None

    @classmethod
    def of(cls, card: PolicyCard, version_dir: Path) -> Checkpoint:
        """Locate the weights of a card's version; unless it is the base, they are in `version_dir`."""
        model = str(version_dir / MODEL_DIR) if card.kind == "full" else card.base_path
        return cls(card, model, version_dir / ADAPTER_DIR if card.kind == "lora" else None)

    def absolute(self) -> Checkpoint:
        """Make the paths absolute, as another process needs them; a hub id stays as it is."""
        model, adapter_dir = Path(self.model), self.adapter_dir
        is_directory = self.card.kind == "full" or model.is_dir()
        return replace(
            self,
            model=str(model.resolve()) if is_directory else self.model,
            adapter_dir=adapter_dir and adapter_dir.resolve(),
        )
