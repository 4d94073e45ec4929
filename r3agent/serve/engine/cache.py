"""Keys and values of the sequences being generated: one slot for each sequence, a token's column is its position.

Sequences come and go at every step, so nothing is padded on the left and nothing moves when one joins; when one
leaves, the last one takes its slot. `DynamicCache` would copy all keys and values at every step (it concatenates), and
again whenever a sequence joins or leaves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

SLOT_STEP, COLUMN_STEP = 16, 64
"""Slots and columns are allocated in multiples of these."""


class SlotCache(Cache):
    """Keys and values of all layers; call `prefill` or `decode` before the forward that it describes."""

    def __init__(self, n_layers: int) -> None:
        self._slots = [SlotLayer() for _ in range(n_layers)]
        super().__init__(layers=list(self._slots))

    def prefill(self, first_slot: int, n_slots: int, source_N: Tensor | None) -> None:
        """Prepare for a forward that reads whole prompts, padded on the right, into N slots from `first_slot` on.

        Args:
            source_N: the prompt of the forward that each slot gets; `None` when it is one to one.
        """
        self._plan(Prefill(slice(first_slot, first_slot + n_slots), source_N))

    def decode(self, positions_B: Tensor, n_columns: int) -> None:
        """Prepare for a forward that reads one token of each of the B sequences, at `positions_B`."""
        self._plan(Decode(torch.arange(len(positions_B), device=positions_B.device), positions_B, n_columns))

    def _plan(self, plan: Prefill | Decode) -> None:
        for layer in self._slots:
            layer.plan = plan

    def move(self, source: int, target: int) -> None:
        """Copy a sequence into another slot."""
        for layer in self._slots:
            for store in layer.stores:
                store[target] = store[source]

    def clear(self) -> None:
        """Give all memory back."""
        for layer in self._slots:
            layer.stores.clear()


@dataclass(frozen=True)
class Prefill:
    slots: slice
    source_N: Tensor | None


@dataclass(frozen=True)
class Decode:
    rows_B: Tensor
    positions_B: Tensor
    n_columns: int


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, grown when needed."""

    is_sliding = False
    plan: Prefill | Decode

    def __init__(self) -> None:
        super().__init__()
        self.stores: list[Tensor] = []
        """Keys and values, [slots, heads, columns, head size] each; empty until the first prefill."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store the new states; returns what the new tokens attend to."""
        both = key_states, value_states
        match self.plan:
            case Prefill(slots, source_N):
                length = key_states.shape[2]
                self._reserve(both, slots.stop, length)
                for store, states in zip(self.stores, both, strict=True):
                    store[slots, :, :length] = states if source_N is None else states[source_N]
                return both
            case Decode(rows_B, positions_B, n_columns):
                self._reserve(both, len(rows_B), n_columns)
                for store, states in zip(self.stores, both, strict=True):
                    store[rows_B, :, positions_B] = states[:, :, 0]
                keys, values = (store[: len(rows_B), :, :n_columns] for store in self.stores)
                return keys, values

    def _reserve(self, both: tuple[Tensor, Tensor], n_slots: int, n_columns: int) -> None:
        stores = self.stores or [states.new_zeros(0, states.shape[1], 0, states.shape[3]) for states in both]
        slots_before, _, columns_before, _ = stores[0].shape
        if n_slots > slots_before or n_columns > columns_before:
            slots = max(slots_before, -(-n_slots // SLOT_STEP) * SLOT_STEP)
            columns = max(columns_before, -(-n_columns // COLUMN_STEP) * COLUMN_STEP)
            self.stores = [_grow(store, slots, columns) for store in stores]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: `update` reserves what it needs."""

    def get_seq_length(self) -> int:
        """Return 0: only a prefill, which starts empty, asks; a decode step brings its own positions and mask."""
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_max_length(self) -> int:
        return -1


def _grow(store: Tensor, slots: int, columns: int) -> Tensor:
    """Enlarge with zeros: what a mask hides must still be a number."""
    grown = store.new_zeros(slots, store.shape[1], columns, store.shape[3])
    grown[: store.shape[0], :, : store.shape[2]] = store
    return grown
