"""One forward pass over a prompt for all its completions.

The siblings of a group share their prompt. Instead of B rows of P + T tokens, each group becomes one sequence

    prompt[:-1]  prompt[-1] completion_0[:-1]  prompt[-1] completion_1[:-1]  ...

whose branches see the prompt and themselves but not each other, at the positions they have in their own row. The last
prompt token heads every branch, so that each completion's first token has its own predictor.
"""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

import torch
from transformers import PretrainedConfig


class Packed(NamedTuple):
    """N groups in sequences of L tokens, padded right."""

    input_ids: torch.Tensor
    """(N, L)"""
    position_ids: torch.Tensor
    """(N, L)"""
    attention_mask: torch.Tensor
    """(N, 1, L, L), True where the row's token sees the column's."""
    shift_labels: torch.Tensor
    """(N, L): the token each position predicts, -100 for none. Read in order, the labels of all completions."""


def obstacle(config: PretrainedConfig) -> str | None:
    """Why a model with this configuration cannot take packed groups, or `None` if it can."""
    if config._attn_implementation != "sdpa":  # pyright: ignore[reportPrivateUsage] it has no public name
        return f"attention implementation {config._attn_implementation!r} takes no block mask"  # pyright: ignore[reportPrivateUsage]
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    if layers != {"full_attention"} or getattr(config, "sliding_window", None):
        return "not all layers attend to the whole sequence"
    return None


def pack(input_ids: torch.Tensor, attention_mask: torch.Tensor, width_T: int, pad_id: int) -> Packed:
    """Pack rows (B, P + T), prompts padded left and completions right; consecutive rows with one prompt are a group."""
    ids, masks = input_ids.tolist(), attention_mask.tolist()
    rows: list[tuple[list[int], list[int]]] = []
    for ids_PT, mask_PT in zip(ids, masks, strict=True):
        first, end = mask_PT.index(1), len(ids_PT) - width_T
        rows.append((ids_PT[first:end], ids_PT[end : end + sum(mask_PT[end:])]))

    tokens, positions, branches, labels = [], [], [], []
    for prompt, group in groupby(rows, key=lambda row: row[0]):
        head = len(prompt) - 1
        tokens_L, positions_L, branches_L, labels_L = prompt[:head], [*range(head)], [0] * head, [-100] * head
        for branch, (_, completion) in enumerate(group, start=1):
            tokens_L += [prompt[-1], *completion[:-1]]
            positions_L += range(head, head + len(completion))
            branches_L += [branch] * len(completion)
            labels_L += completion
        tokens.append(tokens_L)
        positions.append(positions_L)
        branches.append(branches_L)
        labels.append(labels_L)

    branches_NL = _padded(branches, -1, input_ids.device)
    queries, keys = branches_NL[:, :, None], branches_NL[:, None, :]
    sees_NLL = ((keys == 0) | (keys == queries)).tril()
    return Packed(
        input_ids=_padded(tokens, pad_id, input_ids.device),
        position_ids=_padded(positions, 0, input_ids.device),
        attention_mask=sees_NLL[:, None],
        shift_labels=_padded(labels, -100, input_ids.device),
    )


def unpack(values_NL: torch.Tensor, packed: Packed, completion_mask_BT: torch.Tensor) -> torch.Tensor:
    """Values of the predicting positions, as rows (B, T); 0 where the completion is padded."""
    blank_BT = values_NL.new_zeros(completion_mask_BT.shape)
    return blank_BT.masked_scatter(completion_mask_BT.bool(), values_NL[packed.shift_labels != -100])


def _padded(lists: list[list[int]], fill: int, device: torch.device) -> torch.Tensor:
    width = max(map(len, lists))
    return torch.tensor([values + [fill] * (width - len(values)) for values in lists], device=device)
