"""Rows to tensors: which rows share a micro-batch, and how they are padded."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch


class Plan(NamedTuple):
    """How an epoch is cut up."""

    steps: int
    """Optimizer steps in one epoch."""
    accumulate: int
    """Micro-batches in one optimizer step."""


def plan(n_rows: int, batch_size: int, micro_batch_size: int) -> Plan:
    """As few steps as `batch_size` allows, each with about the same number of rows."""
    steps = math.ceil(n_rows / batch_size)
    return Plan(steps, math.ceil(math.ceil(n_rows / steps) / micro_batch_size))


class MicroBatches:
    """A batch sampler: lists of row indices, every row once an epoch, siblings side by side.

    Groups are shuffled by seed and epoch. Steps, and the micro-batches of a step, differ by at most one row.
    """

    def __init__(self, group_ids: Sequence[str], cut: Plan, seed: int) -> None:
        self.groups: dict[str, list[int]] = {}
        for index, group_id in enumerate(group_ids):
            self.groups.setdefault(group_id, []).append(index)
        self.cut, self.seed, self.epoch = cut, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        rows = range(sum(map(len, self.groups.values())))
        return sum(min(len(step), self.cut.accumulate) for step in _even(rows, self.cut.steps))

    def __iter__(self) -> Iterator[list[int]]:
        groups = list(self.groups.values())
        random.Random(f"{self.seed}:{self.epoch}").shuffle(groups)
        order = [index for group in groups for index in group]
        for step in _even(order, self.cut.steps):
            yield from filter(None, _even(step, self.cut.accumulate))


def _even(items: Sequence[int], parts: int) -> Iterator[list[int]]:
    """Consecutive parts whose lengths differ by at most one."""
    for i in range(parts):
        yield list(items[len(items) * i // parts : len(items) * (i + 1) // parts])


def collate_tokens(rows: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
    """B rows with prompts padded left and completions padded right, as `GRPOTrainer` lays them out.

    Returns:
        prompt_ids, prompt_mask (B, P); completion_ids, completion_mask (B, T).
    """
    width_P = max(len(row["prompt_ids_P"]) for row in rows)
    prompts = [row["prompt_ids_P"] for row in rows]
    completions = [row["completion_ids_T"] for row in rows]
    return {
        "prompt_ids": torch.tensor([[pad_id] * (width_P - len(ids)) + ids for ids in prompts]),
        "prompt_mask": torch.tensor([[0] * (width_P - len(ids)) + [1] * len(ids) for ids in prompts]),
        "completion_ids": _right(completions, pad_id),
        "completion_mask": _right([[1] * len(ids) for ids in completions], 0),
    }


def collate(rows: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
    """The batch that `GRPOTrainer` computes its loss from; every row has its logprobs by now.

    Returns:
        What `collate_tokens` gives; advantages and distilled, which rows are, (B,); old_per_token_logps,
        ref_per_token_logps (B, T), 0 where padded.
    """
    return {
        **collate_tokens(rows, pad_id),
        "advantages": torch.tensor([row["advantage"] for row in rows], dtype=torch.float32),
        "distilled": torch.tensor([row.get("label") == "distill" for row in rows]),
        "old_per_token_logps": _right([row["logprobs_T"] for row in rows], 0.0),
        "ref_per_token_logps": _right([row["start_logprobs_T"] for row in rows], 0.0),
    }


def _right(lists: Sequence[list[Any]], fill: float) -> torch.Tensor:
    width = max(map(len, lists))
    return torch.tensor([values + [fill] * (width - len(values)) for values in lists])
