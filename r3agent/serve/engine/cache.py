"""KV cache of the running sequences: one slot for each sequence; a token's column is its position.

Sequences join and leave at every step, so there is no left padding, and nothing moves when one joins; when one leaves,
the last one takes its slot. `DynamicCache` would copy all keys and values at every step (it concatenates), and again
whenever a sequence joins or leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

SLOT_STEP, COLUMN_STEP = 16, 64
"""Allocation step of slots and of columns."""


class SlotCache(Cache):
    """Keys and values of all layers; call `prefill` or `decode` before each forward pass."""

    def __init__(self, n_layers: int) -> None:
        self._slots = [SlotLayer() for _ in range(n_layers)]
        super().__init__(layers=list(self._slots))

    def prefill(self, first_slot: int, n_slots: int, source_N: Tensor | None) -> None:
        """Prepare for a forward pass over whole prompts, padded on the right, into N slots from `first_slot` on.

        Args:
            source_N: index of the prompt for each slot; `None` if they map one to one.
        """
        for layer in self._slots:
            layer.store = partial(layer.store_prompts, slice(first_slot, first_slot + n_slots), source_N)

    def decode(self, positions_B: Tensor, n_columns: int) -> None:
        """Prepare for a forward pass over one token of each of the B sequences, at `positions_B`."""
        slots_B = torch.arange(len(positions_B), device=positions_B.device)
        for layer in self._slots:
            layer.store = partial(layer.store_tokens, slots_B, positions_B, n_columns)

    def move(self, source: int, target: int) -> None:
        """Copy a sequence into another slot."""
        for layer in self._slots:
            for states in layer.states:
                states[target] = states[source]

    def clear(self) -> None:
        """Release all memory."""
        for layer in self._slots:
            layer.states.clear()


Pair: TypeAlias = tuple[Tensor, Tensor]
"""Keys and values."""


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, grown when needed."""

    is_sliding = False
    store: Callable[[Pair], Pair]
    """Function that stores the new states of the next forward pass and returns those that its tokens attend to."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[Tensor] = []
        """Keys and values, each [slots, heads, columns, head size]; empty until the first prefill."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Pair:
        return self.store((key_states, value_states))

    def store_prompts(self, slots: slice, source_N: Tensor | None, new: Pair) -> Pair:
        length = new[0].shape[2]
        self._reserve(new, slots.stop, length)
        for stored, states in zip(self.states, new, strict=True):
            stored[slots, :, :length] = states if source_N is None else states[source_N]
        return new

    def store_tokens(self, slots_B: Tensor, positions_B: Tensor, n_columns: int, new: Pair) -> Pair:
        self._reserve(new, len(slots_B), n_columns)
        for stored, states in zip(self.states, new, strict=True):
            stored[slots_B, :, positions_B] = states[:, :, 0]
        keys, values = (stored[: len(slots_B), :, :n_columns] for stored in self.states)
        return keys, values

    def _reserve(self, like: Pair, n_slots: int, n_columns: int) -> None:
        before = self.states or [states.new_zeros(0, states.shape[1], 0, states.shape[3]) for states in like]
        slots_before, _, columns_before, _ = before[0].shape
        if n_slots > slots_before or n_columns > columns_before:
            slots = max(slots_before, -(-n_slots // SLOT_STEP) * SLOT_STEP)
            columns = max(columns_before, -(-n_columns // COLUMN_STEP) * COLUMN_STEP)
            self.states = [_grow(states, slots, columns) for states in before]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: `update` allocates memory."""

    def get_seq_length(self) -> int:
        """Return 0: only a prefill, which starts empty, calls this; a decode step has its own positions and mask."""
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_max_length(self) -> int:
        return -1


def _grow(states: Tensor, slots: int, columns: int) -> Tensor:
    """Enlarge with zeros, because masked values must still be numbers."""
    grown = states.new_zeros(slots, states.shape[1], columns, states.shape[3])
    grown[: states.shape[0], :, : states.shape[2]] = states
    return grown
