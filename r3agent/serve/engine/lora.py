"""LoRA adapters: read in peft's format, and applied to the rows of one forward pass.

The matrices of the batch's adapters are concatenated along the rank, and a mask restricts each row to its own columns.
On the bundled policy this makes a step of 64 rows a tenth slower; peft's mixed batches double its time, and a forward
pass per adapter costs a whole pass each. Deltas are not merged into the weights: bfloat16 would round small ones away.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

from r3agent.errors import ConfigError

PREFIX = "base_model.model."
"""Prefix that peft adds to the names of the base model's modules."""

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
"""Unsupported settings that change an adapter's computation, with the values that leave it unchanged."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """Loaded adapter. Running requests keep a reference, so it outlives its name."""

    name: str
    path: str
    rank: int
    down: dict[str, Tensor]
    """Matrices by module, each [rank, inputs]."""
    up: dict[str, Tensor]
    """Matrices by module, each [outputs, rank], multiplied by the adapter's scaling."""


def read_adapter(name: str, path: str, model: Any) -> Adapter:
    """Read an adapter directory and check every tensor against the base model, which is not changed.

    Raises:
        FileNotFoundError: there is no adapter at `path`.
        ConfigError: the adapter is incomplete, of an unsupported kind, or of another base model.
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
    """Check the shapes of the matrices; return them in the base model's dtype and on its device."""
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


class AdapterSwitch:
    """Hooks that add the adapters' deltas to a model's linear layers; only the engine's thread uses them."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = dict(model.named_modules())
        self._joined: tuple[Adapter, ...] = ()
        self._hooks: list[RemovableHandle] = []
        self._mask: Tensor | None = None
        """[B, 1, joined ranks]: 1 where the column belongs to the row's adapter; `None` if all columns do."""

    def select(self, adapters_B: Sequence[Adapter | None]) -> None:
        """Select the adapter of each row of the next forward pass."""
        joined = tuple(dict.fromkeys(adapter for adapter in adapters_B if adapter is not None))
        if joined != self._joined:
            self._join(joined)
        if len({*adapters_B}) > 1:
            columns_BR = [[float(mine is a) for a in joined for _ in range(a.rank)] for mine in adapters_B]
            like = next(iter(joined[0].down.values()))
            self._mask = torch.tensor(columns_BR, dtype=like.dtype, device=like.device).unsqueeze(1)
        else:
            self._mask = None

    def _join(self, adapters: tuple[Adapter, ...]) -> None:
        for hook in self._hooks:
            hook.remove()
        names = sorted({name for adapter in adapters for name in adapter.down})
        self._hooks = [self._modules[name].register_forward_hook(self._delta(name, adapters)) for name in names]
        self._joined = adapters

    def _delta(self, name: str, adapters: tuple[Adapter, ...]) -> Any:
        """Make the forward hook of one linear layer."""
        shapes = next(((a.down[name].shape[1], a.up[name].shape[0]) for a in adapters if name in a.down), (0, 0))
        like = next(a.down[name] for a in adapters if name in a.down)
        down_RI = torch.cat([a.down.get(name, like.new_zeros(a.rank, shapes[0])) for a in adapters])
        up_OR = torch.cat([a.up.get(name, like.new_zeros(shapes[1], a.rank)) for a in adapters], dim=1)

        def add_delta(_module: nn.Module, inputs: tuple[Tensor, ...], output_BTO: Tensor) -> Tensor:
            inner_BTR = linear(inputs[0], down_RI)
            if self._mask is not None:
                inner_BTR *= self._mask
            return output_BTO.add_(linear(inner_BTR, up_OR))

        return add_delta
