from __future__ import annotations

import math
from collections import Counter
from itertools import groupby
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from r3agent.train.collate import Costs, MicroBatches, blank_row, collate, collate_tokens
from r3agent.train.shared_prefix import pack, unpack

PAD = 0
ids = st.lists(st.integers(1, 30), min_size=1, max_size=9)


@st.composite
def groups(draw: st.DrawFn) -> list[dict[str, Any]]:
    rows = []
    for prompt in draw(st.lists(ids, min_size=1, max_size=4)):
        for completion in draw(st.lists(ids, min_size=1, max_size=4)):
            rows.append(
                {
                    "prompt_ids_P": prompt,
                    "completion_ids_T": completion,
                    "label": draw(st.sampled_from(["reflect", "retry", "distill", "imitate"])),
                    "reward": 1.0,
                    "advantage": draw(st.floats(-2, 2, width=32)),
                    "logprobs_T": [-float(i + 1) for i in range(len(completion))],
                    "start_logprobs_T": [-float(i + 2) for i in range(len(completion))],
                }
            )
    return rows


@given(groups())
def test_masks_align_with_tokens(rows: list[dict[str, Any]]) -> None:
    batch = collate(rows, PAD)
    for i, row in enumerate(rows):
        prompt, completion = batch["prompt_mask"][i].bool(), batch["completion_mask"][i].bool()
        assert batch["prompt_ids"][i][prompt].tolist() == row["prompt_ids_P"]
        assert batch["completion_ids"][i][completion].tolist() == row["completion_ids_T"]
        assert batch["old_per_token_logps"][i][completion].tolist() == row["logprobs_T"]
        assert batch["ref_per_token_logps"][i][completion].tolist() == row["start_logprobs_T"]
        assert prompt.tolist() == sorted(prompt.tolist())  # padding on the left
        assert completion.tolist() == sorted(completion.tolist(), reverse=True)  # and on the right
    padding = batch["completion_mask"] == 0
    assert batch["old_per_token_logps"][padding].abs().sum() == 0
    assert batch["advantages"].tolist() == [row["advantage"] for row in rows]
    assert batch["unweighted"].tolist() == [row["label"] in ("distill", "imitate") for row in rows]
    assert torch.equal(batch["tool_mask"], batch["completion_mask"])


@given(groups(), st.floats(0.5, 9))
def test_cap_moves_recorded_logprobs_from_ratio_into_weight(rows: list[dict[str, Any]], cap: float) -> None:
    plain, capped = collate(rows, PAD), collate(rows, PAD, importance_cap=cap)
    assert torch.equal(capped["old_per_token_logps"], plain["ref_per_token_logps"])
    for i, row in enumerate(rows):
        pairs = zip(row["start_logprobs_T"], row["logprobs_T"], strict=True)
        weighs = row["label"] not in ("distill", "imitate")
        ratios = [math.exp(start - recorded) if weighs else 1.0 for start, recorded in pairs]
        expected = [row["advantage"] * (min(ratio, cap) if weighs else ratio) for ratio in ratios]
        assert capped["advantages"][i][: len(expected)].tolist() == pytest.approx(expected, rel=1e-5)


def test_blank_rows_count_for_nothing() -> None:
    batch = collate([blank_row(7), blank_row(7)], PAD)
    assert batch["tool_mask"].sum() == 0
    assert batch["completion_mask"].sum() == 2


@given(groups())
def test_packing_keeps_every_label_in_order(rows: list[dict[str, Any]]) -> None:
    batch = collate_tokens(rows, PAD)
    packed = pack(
        torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
        torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
        batch["completion_ids"].size(1),
    )
    labels = unpack(packed.shift_labels, batch["completion_mask"])
    assert torch.equal(labels, batch["completion_ids"] * batch["completion_mask"])
    layout, n_tokens = packed.shared_prefix, packed.input_ids.size(1)
    assert sum(group.head + sum(group.lengths_G) for group in layout.groups) == n_tokens
    assert n_tokens == cost_of(rows)(range(len(rows)))
    assert len(layout.labelled_K) == sum(len(row["completion_ids_T"]) for row in rows)


# ---- which rows share a forward pass ----


def cost_of(rows: list[dict[str, Any]], *, shares: bool = True) -> Costs:
    return Costs([row["prompt_ids_P"] for row in rows], [row["completion_ids_T"] for row in rows], shares=shares)


@given(groups(), st.integers(1, 40), st.booleans())
def test_costs_cut_parts_within_budget_and_keep_siblings(rows: list[dict[str, Any]], budget: int, shares: bool) -> None:
    costs = cost_of(rows, shares=shares)
    parts = costs.cut(range(len(rows)), budget)
    assert [row for part in parts for row in part] == [*range(len(rows))]
    assert all(costs(part) <= budget or len(part) == 1 for part in parts)
    for _, group in groupby(range(len(rows)), key=lambda row: costs.prompts[row]):
        siblings = list(group)
        if costs(siblings) <= budget:
            assert any(set(siblings) <= set(part) for part in parts)


def sampler(rows: list[dict[str, Any]], **values: Any) -> MicroBatches:
    settings = {"batch_size": 4, "budget": 20, "epochs": 3, "seed": 0, **values}
    return MicroBatches([str(row["prompt_ids_P"]) for row in rows], cost_of(rows), **settings)


@given(groups(), st.integers(1, 9), st.integers(1, 40), st.integers(1, 3))
def test_micro_batches_are_as_many_and_as_wide_in_each_process(
    rows: list[dict[str, Any]], batch_size: int, budget: int, processes: int
) -> None:
    ranks = [
        sampler(rows, batch_size=batch_size, budget=budget, rank=rank, processes=processes) for rank in range(processes)
    ]
    blank, costs = len(rows), cost_of(rows)
    for epoch in range(3):
        for rank in ranks:
            rank.set_epoch(epoch)
        batches = [list(rank) for rank in ranks]
        assert {len(mine) for mine in batches} == {len(ranks[0])} == {ranks[0].steps * ranks[0].accumulate}
        assert all(len({len(batch) for batch in together}) == 1 for together in zip(*batches, strict=True))
        real = [[[row for row in batch if row != blank] for batch in mine] for mine in batches]
        assert Counter(row for mine in real for batch in mine for row in batch) == Counter(range(len(rows)))
        assert all(len(batch) <= 1 or costs(batch) <= budget for mine in real for batch in mine)
        for step in range(ranks[0].steps):
            window = slice(step * ranks[0].accumulate, (step + 1) * ranks[0].accumulate)
            assert 0 < sum(len(batch) for mine in real for batch in mine[window]) <= batch_size


@given(groups(), st.integers(1, 4), st.integers(1, 40), st.integers(1, 3), st.data())
def test_micro_batches_keep_a_try_in_one_step(
    rows: list[dict[str, Any]], batch_size: int, budget: int, processes: int, data: st.DataObject
) -> None:
    """Tries of several rows, also with different prompts."""
    try_ids = [data.draw(st.integers(0, 2)) for _ in rows]
    costs = cost_of(rows)
    settings = {"batch_size": batch_size, "budget": budget, "epochs": 2, "seed": 0, "processes": processes}
    ranks = [
        MicroBatches(["a"] * len(rows), costs, try_ids=try_ids, rank=rank, **settings) for rank in range(processes)
    ]
    assert ranks[0].steps == math.ceil(len(set(try_ids)) / batch_size)
    for epoch in range(2):
        steps: list[list[int]] = [[] for _ in range(ranks[0].steps)]
        for rank in ranks:
            rank.set_epoch(epoch)
            for i, batch in enumerate(rank):
                steps[i // rank.accumulate] += [row for row in batch if row != len(rows)]
        assert sorted(row for step in steps for row in step) == [*range(len(rows))]
        tries = [{try_ids[row] for row in step} for step in steps]
        assert sum(map(len, tries)) == len(set(try_ids))
        assert all(0 < len(of_step) <= batch_size for of_step in tries)


def test_micro_batches_cut_a_group_larger_than_the_budget() -> None:
    rows = [{"prompt_ids_P": [1] * 11, "completion_ids_T": [2] * 5}] * 8
    assert [len(batch) for batch in sampler(rows, batch_size=8, budget=20)] == [2, 2, 2, 2]
    assert [len(batch) for batch in sampler(rows, batch_size=8, budget=50)] == [8]
    alone = MicroBatches(["a"] * 8, cost_of(rows, shares=False), batch_size=8, budget=50, epochs=1, seed=0)
    assert [len(batch) for batch in alone] == [3, 3, 2]


def test_micro_batches_shuffle_groups_by_seed_and_epoch() -> None:
    rows = [{"prompt_ids_P": [i], "completion_ids_T": [1]} for i in range(8) for _ in range(4)]
    whole = {"batch_size": 99, "budget": 99}
    shuffled = sampler(rows, **whole)
    (first,) = shuffled
    assert list(shuffled) == [first]
    shuffled.set_epoch(1)
    assert list(shuffled) != [first]
    assert list(sampler(rows, **whole, seed=1)) != [first]
    letters = [index // 4 for index in first]
    assert all(letters[i : i + 4] == [letters[i]] * 4 for i in range(0, 32, 4))
