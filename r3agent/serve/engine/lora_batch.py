"""One forward for rows of several adapters, and of none.

The matrices of the adapters in the batch are joined along the rank, and a mask keeps each row to its own columns. On
the bundled policy this adds a tenth to a step of 64 rows; peft's mixed batches double it, and one forward for each
adapter costs a whole forward more. The deltas are not merged into the weights: bfloat16 would round small ones away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

from r3agent.serve.engine.lora import Adapter


class AdapterSwitch:
    """Adds the adapters' deltas to the outputs of a model's linear layers. Used by the engine's thread only."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = dict(model.named_modules())
        self._joined: tuple[Adapter, ...] = ()
        self._hooks: list[RemovableHandle] = []
        self._mask: Tensor | None = None
        """[B, 1, joined ranks]: 1 where the column belongs to the row's adapter; `None` when all columns do."""

    def select(self, adapters_B: Sequence[Adapter | None]) -> None:
        """Choose the adapter of each row of the next forward."""
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
        """The forward hook of one linear layer."""
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
