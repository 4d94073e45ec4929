"""Conversion of rows to tensors: micro-batches by cost, and their layout."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import groupby
from typing import Any, Literal, cast

import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from r3agent.train.row import WITHOUT_SIBLINGS


class Costs:
    """Cost of rows: the number of tokens that the model computes for them in one forward pass.

    Args:
        shares: compute a prompt that adjacent rows share once; otherwise rows are padded to the longest.
    """

    def __init__(
        self, prompts: Iterable[Sequence[int]], completions: Iterable[Sequence[int]], *, shares: bool = False
    ) -> None:
        numbers: dict[bytes, int] = {}
        self.prompts: list[int] = []
        self.prompt_tokens: list[int] = []
        for ids in prompts:  # a hash, because they are many and long
            self.prompts.append(numbers.setdefault(blake2b(array("q", ids), digest_size=16).digest(), len(numbers)))
            if len(numbers) > len(self.prompt_tokens):
                self.prompt_tokens.append(len(ids))
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
        """Split rows into parts within the budget; siblings stay together if they fit, an oversized row is alone."""
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

    def parts(self, budget: int) -> list[list[int]]:
        """Split all rows into parts within the budget, those with the same prompt adjacent, short prompts first."""
        order = sorted(range(len(self.prompts)), key=lambda i: (self.prompt_tokens[self.prompts[i]], self.prompts[i]))
        return self.cut(order, budget)

    def halves(self, rows: list[int]) -> list[list[int]]:
        """Split rows into two parts so that the larger cost is as small as possible."""
        at = min(range(1, len(rows)), key=lambda i: max(self(rows[:i]), self(rows[i:])))
        return [rows[:at], rows[at:]]


class MicroBatches:
    """Batch sampler of row indices: every row once per epoch, siblings adjacent.

    Groups are shuffled by seed and epoch, and the tries are divided evenly among optimizer steps, each with all of its
    rows. Within a step, rows of a group that share a prompt are adjacent. Every step of every epoch has the same number
    of micro-batches, `accumulate` for each process: as many as the largest step needs. Micro-batches that processes
    compute at the same time have the same number of rows, as TRL's metrics require. They are padded with the index
    after the last row, which is a blank row (`blank_row`).

    Args:
        try_ids: id of each row's try; `None` if every row is a try.
        batch_size: limit of the tries in a step.
        budget: limit of the tokens in a micro-batch.
        rank: index of this process among `processes`.
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
        try_ids: Sequence[Hashable] | None = None,
    ) -> None:
        self.rows = len(group_ids)
        self.groups: dict[str, dict[Hashable, list[int]]] = {}
        for index, group_id in enumerate(group_ids):
            tries = self.groups.setdefault(group_id, {})
            tries.setdefault(try_ids[index] if try_ids else index, []).append(index)
        self.costs, self.seed, self.epoch = costs, seed, 0
        self.rank, self.processes = rank, processes
        self.steps = math.ceil(sum(map(len, self.groups.values())) / batch_size)
        every = [[costs.cut(step, budget) for step in self._steps(epoch)] for epoch in range(epochs)]
        self.accumulate = max(math.ceil(len(parts) / processes) for cuts in every for parts in cuts)
        self.epochs = [[self._fill(parts) for parts in cuts] for cuts in every]

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        for parts in self.epochs[self.epoch]:
            for first in range(0, len(parts), self.processes):
                together = parts[first : first + self.processes]
                part, width = together[self.rank], max(1, *map(len, together))
                yield part + [self.rows] * (width - len(part))

    def rows_of(self, step: int) -> list[int]:
        """Return the indices of the rows of an optimizer step, of all processes; the first step is 1."""
        epoch, i = divmod(step - 1, self.steps)
        return [row for part in self.epochs[epoch][i] for row in part]

    def _steps(self, epoch: int) -> Iterator[list[int]]:
        groups = list(self.groups.values())
        random.Random(f"{self.seed}:{epoch}").shuffle(groups)
        order = [(number, rows) for number, group in enumerate(groups) for rows in group.values()]
        for i in range(self.steps):
            step = order[len(order) * i // self.steps : len(order) * (i + 1) // self.steps]
            by_prompt: dict[tuple[int, int], list[int]] = {}
            for number, rows in step:
                for row in rows:
                    by_prompt.setdefault((number, self.costs.prompts[row]), []).append(row)
            yield [row for rows in by_prompt.values() for row in rows]

    def _fill(self, parts: list[list[int]]) -> list[list[int]]:
        """Halve the costliest parts, then add empty ones, until there are as many as in every step."""
        while len(parts) < self.accumulate * self.processes:
            heaviest = max((part for part in parts if len(part) > 1), key=self.costs, default=None)
            if heaviest is None:
                parts = parts + [[]] * (self.accumulate * self.processes - len(parts))
                break
            at = parts.index(heaviest)
            parts[at : at + 1] = self.costs.halves(heaviest)
        return sorted(parts, key=len) if self.processes > 1 else parts


class Epochs(DataLoader[Any]):
    """Data loader that passes the epoch to its batch sampler."""

    def set_epoch(self, epoch: int) -> None:
        cast(MicroBatches, self.batch_sampler).set_epoch(epoch)


class TrainingRows(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows of a dataset with what the trainer knows of them, which are read when they are used; a blank one follows.

    Args:
        weights: weight of each row.
        scores: the starting policy's logprobs of each row; `None` for the recorded ones.
    """

    def __init__(
        self, rows: Dataset, weights: Sequence[float], scores: Sequence[list[float] | None], blank: dict[str, Any]
    ) -> None:
        self.rows, self.weights, self.scores, self.blank = rows, weights, scores, blank

    def __len__(self) -> int:
        return len(self.rows) + 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == len(self.rows):
            return self.blank
        row, score_T = self.rows[index], self.scores[index]
        recorded_T = row["logprobs_T"] or score_T
        more = {"logprobs_T": recorded_T, "start_logprobs_T": score_T or recorded_T, "weight": self.weights[index]}
        return {**row, **more}


def blank_row(token: int) -> dict[str, Any]:
    """Make a row of two tokens that contributes nothing to the loss."""
    return {
        "weight": 0.0,
        "prompt_ids_P": [token],
        "completion_ids_T": [token],
        "logprobs_T": [0.0],
        "start_logprobs_T": [0.0],
        "reward": 0.0,
        "advantage": 0.0,
        "blank": True,
    }


def collate_tokens(rows: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
    """Pad rows as `GRPOTrainer` does: prompts on the left, completions on the right.

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
    rows: Sequence[Mapping[str, Any]],
    pad_id: int,
    importance_cap: float | Literal["none"] = "none",
    importance_mode: str = "token_truncate",
) -> dict[str, torch.Tensor]:
    """Make the batch from which `GRPOTrainer` computes its loss; every row must have logprobs.

    With a cap, the old logprobs are the starting policy's, and advantages are multiplied by importance weights. These
    are not negative, so TRL's clipping is unchanged.

    Returns:
        The tensors of `collate_tokens`; advantages (B,), with a cap (B, T) or (B, 1); rewards, weights and unweighted
        (B,); sampled (B, T), 1 at tokens that a policy sampled, 0 at what came between them and where padded;
        old_per_token_logps and ref_per_token_logps (B, T), 0 where not sampled; tool_mask (B, T), the same as sampled
        but 0 in blank rows: TRL's mask of the tokens that its loss and its metrics are about.
    """
    batch = collate_tokens(rows, pad_id)
    sampled_BT = _right(
        [[int(s) for s in row.get("sampled_T") or [1] * len(row["completion_ids_T"])] for row in rows], 0
    )
    real_B = torch.tensor([not row.get("blank", False) for row in rows])
    advantages = torch.tensor([row["advantage"] for row in rows], dtype=torch.float32)
    rewards_B = torch.tensor([row["reward"] for row in rows], dtype=torch.float32)
    old_BT = _right([row["logprobs_T"] for row in rows], 0.0) * sampled_BT
    start_BT = _right([row["start_logprobs_T"] for row in rows], 0.0) * sampled_BT
    unweighted_B = torch.tensor([row.get("label") in WITHOUT_SIBLINGS for row in rows])
    if importance_cap != "none":
        weights = importance_weights(start_BT - old_BT, importance_cap, importance_mode)
        advantages = advantages[:, None] * weights.masked_fill(unweighted_B[:, None], 1.0)
        old_BT = start_BT.clone()
    return {
        **batch,
        "sampled": sampled_BT,
        "tool_mask": sampled_BT * real_B[:, None],
        "advantages": advantages,
        "rewards": rewards_B * real_B,
        "weights": torch.tensor([row.get("weight", 1.0) for row in rows], dtype=torch.float32),
        "unweighted": unweighted_B,
        "old_per_token_logps": old_BT,
        "ref_per_token_logps": start_BT,
    }


def importance_weights(gap_BT: torch.Tensor, cap: float, mode: str) -> torch.Tensor:
    """Compute weights as TRL's `vllm_importance_sampling_mode` does: (B, T) of tokens, (B, 1) of sequences.

    Args:
        gap_BT: logprob under the starting weights minus the recorded one.
    """
    level, limit = mode.split("_")
    weights = (gap_BT if level == "token" else gap_BT.sum(1, keepdim=True)).exp()
    return weights.clamp(max=cap) if limit == "truncate" else weights.masked_fill(weights > cap, 0.0)


def _right(lists: Sequence[list[Any]], fill: float) -> torch.Tensor:
    width = max(map(len, lists))
    return torch.tensor([values + [fill] * (width - len(values)) for values in lists])
