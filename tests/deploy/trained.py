"""Versions with real weights that differ visibly, and what transformers says of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from benchmarks.bundled.tokenizer import build_tokenizer
from r3agent.store.checkpoint import Checkpoint
from r3agent.store.registry import (
    ADAPTER_DIR,
    MODEL_DIR,
    FingerprintSequence,
    PolicyCard,
    PolicyKind,
    Registry,
    create_version,
    write_card,
)

TOKENS = (4, 16, 30, 41, 52, 7, 9, 11, 2, 5, 40, 33, 10, 2)


def tiny_base(directory: Path) -> Path:
    """A random Llama with the bundled policy's tokenizer."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(build_tokenizer()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    _save(transformers.LlamaForCausalLM(config), directory)
    return directory


class Trained:
    """A registry whose versions are made of its base by adding noise to it."""

    def __init__(self, run_dir: Path, base: Path, name: str) -> None:
        self.base = base
        self.name = name
        self.registry = Registry(run_dir)
        self.registry.add_base(name, str(base))

    def publish(
        self, kind: PolicyKind, *, seed: int, card_seed: int | None = None, rank: int = 8, change: float = 0.1
    ) -> str:
        """A version from the base; with `card_seed`, its card describes other weights than it has."""
        version = self.registry.next_version()
        changed = self.changed(kind, seed, rank, change)
        described = changed if card_seed is None else self.changed(kind, card_seed, rank, change)
        fingerprint = FingerprintSequence(
            token_ids_T=TOKENS,
            logprobs_T=logprobs_of(described, TOKENS),
            parent_logprobs_T=logprobs_of(self.load(), TOKENS),
        )
        card = PolicyCard(
            version=version,
            name=self.name,
            kind=kind,
            base_model=str(self.base),
            parent="v0000",
            fingerprint=(fingerprint,),
        )
        with create_version(self.registry.version_dir(version)) as directory:
            if kind == "lora":
                changed.save_pretrained(directory / ADAPTER_DIR)
            else:
                _save(changed, directory / MODEL_DIR)
            write_card(directory, card)
        return version

    def load(self, version: str = "v0000") -> Any:
        """A version as transformers and peft load it."""
        checkpoint = Checkpoint.of(self.registry.card(version), self.registry.version_dir(version))
        model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint.model).eval()
        adapter_dir = checkpoint.adapter_dir
        return model if adapter_dir is None else peft.PeftModel.from_pretrained(model, adapter_dir)

    def changed(self, kind: PolicyKind, seed: int, rank: int = 8, change: float = 0.1) -> Any:
        model = self.load()
        if kind == "lora":
            model = peft.get_peft_model(
                model, peft.LoraConfig(r=rank, lora_alpha=16, target_modules=["q_proj", "up_proj"])
            )
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if kind == "full" or "lora_B" in name:
                    parameter += change * torch.randn_like(parameter)
        return model


def logprobs_of(model: Any, token_ids_T: Sequence[int]) -> tuple[float, ...]:
    """0.0, then log p(token t | tokens before t) for t = 1 .. T-1."""
    with torch.no_grad():
        logits_TV = model(torch.tensor([list(token_ids_T)])).logits[0].float().log_softmax(-1)
    return (0.0, *(logits_TV[t - 1, token_ids_T[t]].item() for t in range(1, len(token_ids_T))))


def _save(model: Any, directory: Path) -> None:
    model.save_pretrained(directory)
    build_tokenizer().save_pretrained(directory)
