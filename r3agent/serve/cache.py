"""Keys and values of the rows being generated: one slot for each row, a token's column is its position.

Rows come and go at every step, so nothing is padded on the left and nothing moves when a row joins; when one leaves,
the last row takes its slot. `DynamicCache` would copy all keys and values at every step (it concatenates), and again
whenever a row joins or leaves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

SLOT_STEP, COLUMN_STEP = 16, 64
"""Slots and columns are allocated in multiples of these."""


class SlotCache(Cache):
    """The cache of all layers. Say what the next forward does, `prefill` or `decode`, then run it."""

    def __init__(self, n_layers: int) -> None:
        self._layers = [SlotLayer() for _ in range(n_layers)]
        super().__init__(layers=list(self._layers))

    def prefill(self, first_slot: int, source_N: Tensor | None, n_rows: int) -> None:
        """The next forward reads whole prompts, padded on the right, into N slots from `first_slot` on.

        Args:
            source_N: which prompt of the forward each slot gets; `None` when it is one to one.
        """
        for layer in self._layers:
            layer.plan = _Prefill(first_slot, source_N, n_rows)

    def decode(self, positions_B: Tensor, n_columns: int) -> None:
        """The next forward reads one token for each of the B rows, at `positions_B`."""
        plan = _Decode(torch.arange(len(positions_B), device=positions_B.device), positions_B, n_columns)
        for layer in self._layers:
            layer.plan = plan

    def move(self, source: int, target: int) -> None:
        """Copy a row into another slot."""
        for layer in self._layers:
            layer.keys[target] = layer.keys[source]
            layer.values[target] = layer.values[source]

    def clear(self) -> None:
        """Give all memory back."""
        for layer in self._layers:
            layer.is_initialized = False
            layer.keys = layer.values = torch.empty(0)


class _Prefill:
    def __init__(self, first_slot: int, source_N: Tensor | None, n_rows: int) -> None:
        self.slots = slice(first_slot, first_slot + n_rows)
        self.source_N = source_N


class _Decode:
    def __init__(self, rows_B: Tensor, positions_B: Tensor, n_columns: int) -> None:
        self.rows_B = rows_B
        self.positions_B = positions_B
        self.n_columns = n_columns


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, [slots, heads, columns, head size] each, grown when needed."""

    is_sliding = False
    plan: _Prefill | _Decode
    keys: Tensor
    values: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store the new states; returns what the new tokens attend to."""
        plan = self.plan
        if isinstance(plan, _Prefill):
            length = key_states.shape[2]
            self._reserve(key_states, value_states, plan.slots.stop, length)
            for store, states in ((self.keys, key_states), (self.values, value_states)):
                store[plan.slots, :, :length] = states if plan.source_N is None else states[plan.source_N]
            return key_states, value_states
        n_rows = len(plan.rows_B)
        self._reserve(key_states, value_states, n_rows, plan.n_columns)
        self.keys[plan.rows_B, :, plan.positions_B] = key_states[:, :, 0]
        self.values[plan.rows_B, :, plan.positions_B] = value_states[:, :, 0]
        return self.keys[:n_rows, :, : plan.n_columns], self.values[:n_rows, :, : plan.n_columns]

    def _reserve(self, key_states: Tensor, value_states: Tensor, n_slots: int, n_columns: int) -> None:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = self.keys.shape
        if n_slots <= held[0] and n_columns <= held[2]:
            return
        slots = max(held[0], -(-n_slots // SLOT_STEP) * SLOT_STEP)
        columns = max(held[2], -(-n_columns // COLUMN_STEP) * COLUMN_STEP)
        self.keys, self.values = (_grown(store, slots, columns) for store in (self.keys, self.values))

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = (s.new_zeros(0, s.shape[1], 0, s.shape[3]) for s in (key_states, value_states))
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """Asked only in a prefill, which starts empty: a decode step brings its own positions and mask."""
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_max_length(self) -> int:
        return -1


def _grown(store: Tensor, slots: int, columns: int) -> Tensor:
    """Zeros where nothing was: what a mask hides must still be a number."""
    grown = store.new_zeros(slots, store.shape[1], columns, store.shape[3])
    grown[: store.shape[0], :, : store.shape[2]] = store
    return grown
