"""Load the served model, and replace its weights in place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from r3agent.errors import ConfigError
from r3agent.store.models import default_name, find_checkpoint

ATTENTION_KINDS = {"full_attention", "sliding_attention"}


@dataclass
class ServedModel:
    """Causal language model in evaluation mode, with its tokenizer."""

    path: str
    name: str
    model: Any
    tokenizer: Any
    max_model_len: int
    """Maximum number of tokens of prompt and completion together."""
    eos_token_id: int | None
    stop_token_ids: frozenset[int]
    """Tokens that end a turn."""

    @property
    def vocab_size(self) -> int:
        return self.model.config.get_text_config().vocab_size

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        config = self.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return 2 * config.num_hidden_layers * heads * head_dim * self.model.dtype.itemsize


def load_model(
    path: str,
    *,
    name: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    max_model_len: int | None = None,
) -> ServedModel:
    """Load a checkpoint directory, a hub id or `bundled`.

    Args:
        name: served name; default the directory's name.
        dtype: e.g. `bfloat16`; default float32 on a CPU, otherwise the checkpoint's own.
        device: default CUDA if available.
        max_model_len: default the model's own limit.

    Raises:
        ConfigError: the model is missing, incomplete, or of an unsupported kind.
    """
    name, path = name or default_name(path), find_checkpoint(path)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or ("float32" if device == "cpu" else "auto")
    model = read_weights(path, dtype).to(device).eval()
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {path} has no tokenizer that loads: {error}") from error
    if not tokenizer.is_fast:
        raise ConfigError(f"model {path} has no fast tokenizer (tokenizer.json): convert it, or serve it with vLLM")
    ends = model.generation_config.eos_token_id
    stop_token_ids = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}
    return ServedModel(
        path=path,
        name=name,
        model=model,
        tokenizer=tokenizer,
        max_model_len=_max_model_len(path, model.config.get_text_config(), max_model_len),
        eos_token_id=tokenizer.eos_token_id,
        stop_token_ids=frozenset(stop_token_ids),
    )


def read_weights(path: str, dtype: str | torch.dtype) -> Any:
    """Load a model with every weight read from `path`.

    Raises:
        ConfigError: the model is missing or incomplete.
    """
    if any(Path(path).glob("*.bin")) and not any(Path(path).glob("*.safetensors")):
        raise ConfigError(
            f"model {path} has its weights in pickled files only: save them as safetensors (`save_pretrained` of "
            "transformers), or serve it with vLLM"
        )
    try:
        loader: Any = AutoModelForCausalLM
        model, info = loader.from_pretrained(path, dtype=dtype, use_safetensors=True, output_loading_info=True)
    except Exception as error:
        # The errors of transformers and safetensors for a bad directory have no common base class.
        raise ConfigError(f"model {path} does not load: {type(error).__name__}: {error}") from error
    if missing := sorted(info["missing_keys"]):
        raise ConfigError(
            f"model {path} is incomplete: {len(missing)} tensors are missing, the first is {missing[0]}; save it again"
        )
    return model


def read_matching(model: nn.Module, path: str) -> dict[str, Tensor]:
    """Read a parameter from another checkpoint for each of `model`'s.

    Raises:
        ConfigError: parameters are missing or of another shape.
    """
    fresh: dict[str, Tensor] = dict(read_weights(path, next(model.parameters()).dtype).named_parameters())
    present = dict(model.named_parameters())
    for name in sorted(present.keys() | fresh.keys()):
        shapes = [None if name not in side else tuple(side[name].shape) for side in (present, fresh)]
        if shapes[0] != shapes[1]:
            raise ConfigError(
                f"weights {path}: {name} has shape {shapes[1]}, the served model has {shapes[0]}; only weights of the "
                "same architecture can be reloaded"
            )
    return fresh


@torch.no_grad()
def replace_weights(model: nn.Module, fresh: dict[str, Tensor]) -> None:
    """Copy parameters into `model`, in place."""
    for name, parameter in model.named_parameters():
        parameter.copy_(fresh[name])


def _max_model_len(path: str, config: Any, max_model_len: int | None) -> int:
    """Return the maximum sequence length; within one attention window, sliding attention equals full attention."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if not kinds <= ATTENTION_KINDS:
        raise ConfigError(
            f"model {path} has layers of kind {', '.join(sorted(kinds - ATTENTION_KINDS))}: only attention over all "
            "earlier tokens is served; serve it with vLLM"
        )
    limits = [config.max_position_embeddings]
    if "sliding_attention" in kinds or getattr(config, "use_sliding_window", True):
        limits.append(getattr(config, "sliding_window", None) or limits[0])
    limit = min(limits)
    if max_model_len is not None and not 1 < max_model_len <= limit:
        raise ConfigError(f"max_model_len = {max_model_len}: the model allows 2 to {limit}")
    return max_model_len or limit
