"""Reading of LoRA adapters as peft saves them, checked against the base before anything changes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from r3agent.errors import ConfigError

PREFIX = "base_model.model."
"""Prefix that peft puts before the name of every module of the base."""

UNSUPPORTED = {
    "alpha_pattern": (None, {}),
    "bias": (None, "none"),
    "fan_in_fan_out": (None, False),
    "layer_replication": (None, []),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "trainable_token_indices": (None, []),
    "use_dora": (None, False),
}
"""Settings that change what an adapter computes, with the values under which they do not."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """One loaded adapter. Requests hold on to it, so it outlives its name while they run."""

    name: str
    path: str
    rank: int
    down: dict[str, Tensor]
    """Matrices by module, [rank, inputs] each."""
    up: dict[str, Tensor]
    """Matrices by module, [outputs, rank] each, times the adapter's scaling."""


def read_adapter(name: str, path: str, model: Any) -> Adapter:
    """Read an adapter directory and check every tensor against the base; the base is not touched.

    Raises:
        FileNotFoundError: there is no adapter at `path`.
        ConfigError: it is incomplete, of a kind that is not supported, or belongs to another base.
    """
    config_path, weights_path = Path(path) / "adapter_config.json", Path(path) / "adapter_model.safetensors"
    if not config_path.is_file():
        raise FileNotFoundError(f"No adapter found for {path}: it has no adapter_config.json")
    try:
        config: dict[str, Any] = json.loads(config_path.read_bytes())
        tensors = load_file(weights_path)
        rank, scaling = int(config["r"]), _scaling(config)
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"adapter {path} is incomplete: {type(error).__name__}: {error}; save it again") from error
    for setting, neutral in UNSUPPORTED.items():
        if (value := config.get(setting)) not in neutral:
            raise ConfigError(f"adapter {path}: {setting} = {value!r} is not supported; merge it into the base")
    down: dict[str, Tensor] = {}
    up: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        module, _, part = key.removeprefix(PREFIX).rpartition(".lora_")
        if part not in ("A.weight", "B.weight"):
            raise ConfigError(f"adapter {path}: tensor {key} is not a LoRA matrix of a linear layer")
        (down if part == "A.weight" else up)[module] = tensor
    if not down or down.keys() != up.keys():
        raise ConfigError(f"adapter {path} is incomplete: lora_A for {len(down)} modules, lora_B for {len(up)}")
    for module in down:
        down[module], up[module] = _fit_to_base(path, model, module, rank, down[module], up[module] * scaling)
    return Adapter(name, path, rank, down, up)


def _scaling(config: dict[str, Any]) -> float:
    return config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])


def _fit_to_base(path: str, model: Any, name: str, rank: int, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Check the matrices' shapes; return them in the base's dtype and on its device."""
    module = dict(model.named_modules()).get(name)
    if not isinstance(module, nn.Linear) or module is model.get_output_embeddings():
        raise ConfigError(
            f"adapter {path} adapts {name}, which is no linear layer inside this model: it was trained on another "
            "base model"
        )
    expected = (rank, module.in_features), (module.out_features, rank)
    if (tuple(down.shape), tuple(up.shape)) != expected:
        raise ConfigError(
            f"adapter {path}: {name} has shapes {tuple(down.shape)} and {tuple(up.shape)}, this model needs "
            f"{expected[0]} and {expected[1]}: it was trained on another base model"
        )
    return down.to(module.weight), up.to(module.weight)
