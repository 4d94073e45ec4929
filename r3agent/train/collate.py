"""Rows to tensors: micro-batches by cost, and their layout."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch


class Costs:
    """Number of tokens that the model computes for rows in one forward pass.

    Args:
        shares: prompts of neighbouring rows are computed once; otherwise rows are padded to the longest.
    """

    def __init__(self, prompts: Iterable[Sequence[int]], completions: Iterable[Sequence[int]], *, shares: bool) -> None:
        numbers: dict[tuple[int, ...], int] = {}
        self.prompts = [numbers.setdefault(tuple(ids), len(numbers)) for ids in prompts]
        self.prompt_tokens = [len(ids) for ids in numbers]
        self.completion_tokens = [len(ids) for ids in completions]
        self.shares = shares

    def __call__(self, rows: Sequence[int]) -> int:
        prompts = [self.prompt_tokens[self.prompts[row]] for row in rows]
        completions = [self.completion_tokens[row] for row in rows]
        if not self.shares:
            return len(rows) * (max(prompts) + max(completions))
        heads = (self.prompt_tokens[prompt] - 1 for prompt, _ in groupby(self.prompts[row] for row in rows))
        return sum(heads) + sum(completions)

    def cut(self, rows: Sequence[int], budget: int) -> list[list[int]]:
        """Cut rows into parts within the budget: siblings together if they fit, a row that exceeds it alone."""
        parts: list[list[int]] = [[]]
        for _, group in groupby(rows, key=self.prompts.__getitem__):
            siblings = list(group)
            whole = self([*parts[-1], *siblings]) <= budget
            if not whole and parts[-1]:
                parts.append([])
            for row in siblings:
                if parts[-1] and not whole and self([*parts[-1], row]) > budget:
                    parts.append([])
                parts[-1].append(row)
        return parts

    def halves(self, rows: list[int]) -> list[list[int]]:
        """Cut rows into two parts, the heavier one as light as possible."""
        at = min(range(1, len(rows)), key=lambda i: max(self(rows[:i]), self(rows[i:])))
        return [rows[:at], rows[at:]]


class MicroBatches:
    """Batch sampler: lists of row indices, every row once an epoch, siblings side by side.

    Groups are shuffled by seed and epoch; optimizer steps share the rows evenly. Every step of every epoch has the same
    number of micro-batches, `accumulate` for each process: as many as the step that needs the most. What several
    processes compute at the same time has the same number of rows, which TRL's metrics ask for. What is missing is made
    up with the index after the last row, a blank (`blank_row`).

    Args:
        batch_size: limit of the rows in a step. budget: of the tokens in a micro-batch.
        rank: of this process among `processes`.
    """

    def __init__(
        self,
        group_ids: Sequence[str],
        costs: Costs,
        *,
        batch_size: int,
        budget: int,
        epochs: int,
        seed: int,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.groups: dict[str, list[int]] = {}
        for index, group_id in enumerate(group_ids):
            self.groups.setdefault(group_id, []).append(index)
        self.costs, self.seed, self.epoch = costs, seed, 0
        self.rank, self.processes = rank, processes
        self.steps = math.ceil(len(group_ids) / batch_size)
        every = [[costs.cut(step, budget) for step in self._steps(epoch)] for epoch in range(epochs)]
        self.accumulate = max(math.ceil(len(parts) / processes) for cuts in every for parts in cuts)
        self.epochs = [[self._fill(parts) for parts in cuts] for cuts in every]

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        blank = sum(map(len, self.groups.values()))
        for parts in self.epochs[self.epoch]:
            for first in range(0, len(parts), self.processes):
                together = parts[first : first + self.processes]
                part, width = together[self.rank], max(1, *map(len, together))
                yield part + [blank] * (width - len(part))

    def _steps(self, epoch: int) -> Iterator[list[int]]:
        groups = list(self.groups.values())
        random.Random(f"{self.seed}:{epoch}").shuffle(groups)
        order = [index for group in groups for index in group]
        for i in range(self.steps):
            yield order[len(order) * i // self.steps : len(order) * (i + 1) // self.steps]

    def _fill(self, parts: list[list[int]]) -> list[list[int]]:
        """Halve the heaviest parts, then add empty ones, until there are as many as every step has."""
        while len(parts) < self.accumulate * self.processes:
            heaviest = max((part for part in parts if len(part) > 1), key=self.costs, default=None)
            if heaviest is None:
                parts = parts + [[]] * (self.accumulate * self.processes - len(parts))
                break
            at = parts.index(heaviest)
            parts[at : at + 1] = self.costs.halves(heaviest)
        return sorted(parts, key=len) if self.processes > 1 else parts


def blank_row(token: int) -> dict[str, Any]:
    """Make a row of two tokens that counts for nothing."""
    return {
        "prompt_ids_P": [token],
        "completion_ids_T": [token],
        "logprobs_T": [0.0],
        "start_logprobs_T": [0.0],
        "reward": 0.0,
        "advantage": 0.0,
        "blank": True,
    }


def collate_tokens(rows: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
    """Lay out rows as `GRPOTrainer` does: prompts padded left, completions padded right.

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


def collate(
    rows: Sequence[Mapping[str, Any]], pad_id: int, importance_cap: float | None = None
) -> dict[str, torch.Tensor]:
    """Make the batch that `GRPOTrainer` computes its loss from; every row has its logprobs by now.

    With a cap, the old logprobs are the starting policy's and each token's advantage carries the weight
    min(starting / recorded probability, cap): a weight is positive, so TRL's clipping applies as without it.

    Returns:
        What `collate_tokens` gives; advantages (B,), or with a cap (B, T); rewards and distilled, which rows are,
        (B,); old_per_token_logps, ref_per_token_logps (B, T), 0 where padded; tool_mask (B, T), which TRL's loss and
        metrics are masked with besides, 0 in blank rows.
    """
    batch = collate_tokens(rows, pad_id)
    real_B = torch.tensor([not row.get("blank", False) for row in rows])
    advantages = torch.tensor([row["advantage"] for row in rows], dtype=torch.float32)
    rewards_B = torch.tensor([row["reward"] for row in rows], dtype=torch.float32)
    old_BT = _right([row["logprobs_T"] for row in rows], 0.0)
    start_BT = _right([row["start_logprobs_T"] for row in rows], 0.0)
    if importance_cap is not None:
        advantages = advantages[:, None] * (start_BT - old_BT).exp().clamp(max=importance_cap)
        old_BT = start_BT.clone()
    return {
        **batch,
        "tool_mask": batch["completion_mask"] * real_B[:, None],
        "advantages": advantages,
        "rewards": rewards_B * real_B,
        "distilled": torch.tensor([row.get("label") == "distill" for row in rows]),
        "old_per_token_logps": old_BT,
        "ref_per_token_logps": start_BT,
    }


def _right(lists: Sequence[list[Any]], fill: float) -> torch.Tensor:
    width = max(map(len, lists))
    return torch.tensor([values + [fill] * (width - len(values)) for values in lists])
