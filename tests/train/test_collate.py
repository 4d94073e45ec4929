from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, Qwen2Config

from r3agent.train.collate import MicroBatches, Plan, collate, collate_tokens, plan
from r3agent.train.prefix import obstacle, pack, unpack

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
                    "label": draw(st.sampled_from(["reflect", "retry", "distill"])),
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
    assert batch["distilled"].tolist() == [row["label"] == "distill" for row in rows]


@given(groups())
def test_packing_keeps_every_label_in_order(rows: list[dict[str, Any]]) -> None:
    batch = collate_tokens(rows, PAD)
    packed = pack(
        torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
        torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
        batch["completion_ids"].size(1),
        PAD,
    )
    labels = unpack(packed.shift_labels, packed, batch["completion_mask"])
    assert torch.equal(labels, batch["completion_ids"] * batch["completion_mask"])
    assert packed.attention_mask.diagonal(dim1=2, dim2=3).all()


def test_packed_logprobs_equal_those_of_single_rows() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=31,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            initializer_range=0.5,
            tie_word_embeddings=True,
        )
    ).eval()
    rows = [
        {
            "prompt_ids_P": prompt,
            "completion_ids_T": completion,
            "advantage": 0.0,
            "logprobs_T": [],
            "start_logprobs_T": [],
        }
        for prompt, completions in (([5, 6, 7], [[1, 2, 3], [4]]), ([9], [[8, 8], [2, 9, 4, 1]]))
        for completion in completions
    ]
    batch = collate_tokens(rows, PAD)
    packed = pack(
        torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
        torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
        batch["completion_ids"].size(1),
        PAD,
    )
    with torch.no_grad():
        table_NLV = model(packed.input_ids, packed.attention_mask, packed.position_ids).logits.log_softmax(-1)
        labels_NL = packed.shift_labels.clamp(min=0)
        logprobs_BT = unpack(table_NLV.gather(-1, labels_NL[..., None])[..., 0], packed, batch["completion_mask"])
        for row, logprobs_T in zip(rows, logprobs_BT, strict=True):
            whole = torch.tensor([row["prompt_ids_P"] + row["completion_ids_T"]])
            alone = model(whole).logits[0, :-1].log_softmax(-1).gather(-1, whole[0, 1:, None])[:, 0]
            n = len(row["completion_ids_T"])
            torch.testing.assert_close(logprobs_T[:n], alone[-n:], rtol=0, atol=1e-5)


def test_models_that_cannot_take_packed_groups_are_named() -> None:
    llama = LlamaConfig(attn_implementation="sdpa")
    assert obstacle(llama) is None
    assert obstacle(Qwen2Config(attn_implementation="sdpa")) is None
    assert "whole sequence" in (obstacle(MistralConfig(attn_implementation="sdpa", sliding_window=8)) or "")
    assert "'eager'" in (obstacle(LlamaConfig(attn_implementation="eager")) or "")


sizes = st.tuples(st.integers(1, 60), st.integers(1, 20), st.integers(1, 20)).filter(lambda s: s[2] <= s[1])


@given(sizes, st.integers(1, 5), st.integers(0, 3))
def test_every_row_comes_once_an_epoch_in_batches_of_the_right_size(
    numbers: tuple[int, int, int], group: int, epoch: int
) -> None:
    n_rows, batch_size, micro_batch_size = numbers
    cut = plan(n_rows, batch_size, micro_batch_size)
    sampler = MicroBatches([str(i // group) for i in range(n_rows)], cut, seed=0)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert Counter(index for batch in batches for index in batch) == Counter(range(n_rows))
    assert all(0 < len(batch) <= micro_batch_size for batch in batches)
    windows = [batches[i : i + cut.accumulate] for i in range(0, len(batches), cut.accumulate)]
    assert all(sum(map(len, window)) <= batch_size for window in windows)


def test_rows_are_shuffled_by_seed_and_epoch_and_groups_stay_together() -> None:
    group_ids = [group for group in "abcdefgh" for _ in range(4)]
    sampler = MicroBatches(group_ids, Plan(steps=1, accumulate=1), seed=0)
    (first,) = sampler
    assert list(sampler) == [first]
    sampler.set_epoch(1)
    assert list(sampler) != [first]
    assert list(MicroBatches(group_ids, Plan(1, 1), seed=1)) != [first]
    letters = [group_ids[index] for index in first]
    assert all(letters[i : i + 4] == [letters[i]] * 4 for i in range(0, 32, 4))
