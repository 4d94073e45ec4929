"""Where training starts: the policy version that sampled the rows, and where its weights are."""

from __future__ import annotations

from pathlib import Path

from r3agent.records.trajectory import Record
from r3agent.store.checkpoint import Checkpoint
from r3agent.store.registry import PolicyCard


class PolicyStart(Record):
    """A policy version as weights: a base model, and an adapter on it or none."""

    version: str
    name: str
    """The base model's served name."""
    model: str
    """Directory or hub id of a causal language model with its tokenizer."""
    base_model: str | None = None
    """`model` as the card of the result names it, where a run that moves to another machine needs that."""
    adapter: Path | None = None
    """A LoRA adapter of that model; it goes on from itself."""

    @classmethod
    def of(cls, card: PolicyCard, directory: Path) -> PolicyStart:
        """The version with this card, whose weights (unless it is the base) are in `directory`."""
        checkpoint = Checkpoint.of(card, directory)
        return cls(
            version=card.version,
            name=card.name,
            base_model=checkpoint.model if card.kind == "full" else card.base_model,
            model=checkpoint.model,
            adapter=checkpoint.adapter_dir,
        )
