"""Whole weights of a version: its adapter merged into the base model, in the base model's own precision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from r3agent._util.files import disk_errors
from r3agent.errors import ConfigError
from r3agent.store.registry import MODEL_DIR
from r3agent.train.base import loading, make_savable, read_config
from r3agent.train.config import PolicyStart, TrainConfig
from r3agent.train.weights import load_model, load_tokenizer, save_weights


def write_merged(start: PolicyStart, directory: Path) -> Path:
    """Write `model/` with the weights of a policy, its tokenizer and its chat template, and return its path.

    The adapter is added in float32, and the sum is rounded once.

    Raises:
        ConfigError: the weights cannot be loaded, are quantised, or `directory` cannot be written.
    """
    base = read_config(start, TrainConfig())
    if getattr(base, "quantization_config", None):
        raise ConfigError(
            f"the weights of {start.model} are quantised, so that no adapter can be merged into them; export the "
            "adapter, or start from the model that they were quantised from"
        )
    own = base.dtype or base.get_text_config().dtype
    tokenizer = load_tokenizer(start)
    model: Any = load_model(start, TrainConfig(method="full"))
    make_savable(model, tokenizer, start, directory)
    if isinstance(own, torch.dtype):
        model.to(own)
    with disk_errors(directory, SafetensorError):
        save_weights(model, tokenizer, directory, start)
    return directory / MODEL_DIR


def logprobs_of(directory: Path, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
    """Compute log p(token t | tokens before t) of each sequence by the weights in a directory; 0.0 at position 0.

    Raises:
        ConfigError: plain transformers cannot load them.
    """
    with loading(PolicyStart(version="v0000", name=directory.name, model=str(directory))):
        model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype="auto").eval()
    return [_logprobs(model, token_ids_T) for token_ids_T in sequences]


@torch.no_grad()
def _logprobs(model: Any, token_ids_T: Sequence[int]) -> list[float]:
    ids_BT = torch.tensor([[*token_ids_T]], device=model.device)
    logprobs_TV = model(input_ids=ids_BT, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    return [0.0, *logprobs_TV.gather(-1, ids_BT[0, 1:, None])[:, 0].tolist()]
