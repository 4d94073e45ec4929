"""Shared prompts: one forward pass over a prompt for all its completions.

The siblings of a group share their prompt. Instead of B rows of P + T tokens, all groups are packed into one sequence

    prompt[:-1]  prompt[-1] completion_0[:-1]  prompt[-1] completion_1[:-1]  ...  next prompt[:-1]  ...

whose branches attend to their prompt and themselves but not to each other, at the positions of their own row. The last
prompt token is repeated at the start of every branch, to predict that completion's first token. Tokens inside a branch
that were not sampled, such as the result of a tool, are computed and attended to like any other, but are no labels.
There is no padding and no mask over the whole sequence: attention is computed group by group (`shared_attention`), so
time and memory grow with the length of the sequence, not with its square.
"""

from __future__ import annotations

import logging
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from r3agent.train.trial import WIDTH, alone, chosen, max_gap, trial_rows, varying_positions

logger = logging.getLogger(__name__)

ATTENTION = "r3agent_shared_prefix"
"""Name under which this attention is registered in transformers."""


class PackedGroup(NamedTuple):
    """Layout of one prompt and its branches; groups are contiguous."""

    head: int
    """Number of prompt tokens that are computed once: all but the last."""
    lengths_G: tuple[int, ...]
    """Number of tokens of each branch."""
    sees: torch.Tensor | None
    """(T, head + T) mask, True where a branch's token attends to a token of the prompt or of its own branch; `None` for
    a single branch, which continues its prompt."""

    @property
    def sections(self) -> tuple[int, ...]:
        """Numbers of tokens of the prompt and of its branches, or of both together if there is one branch."""
        length = sum(self.lengths_G)
        return (self.head + length,) if self.sees is None else (self.head, length)


class Layout(NamedTuple):
    """Layout of a packed sequence, for the attention and the output head."""

    groups: tuple[PackedGroup, ...]
    labelled_K: torch.Tensor
    """Positions that predict a labelled token; only these reach the output head."""


class Packed(NamedTuple):
    """Arguments of the model's forward: groups packed into one sequence of L tokens with K labels."""

    input_ids: torch.Tensor
    """(1, L)"""
    position_ids: torch.Tensor
    """(1, L)"""
    shift_labels: torch.Tensor
    """(1, K) labelled tokens of the completions, one after another."""
    shared_prefix: Layout


def pack(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, width_T: int, labels_BT: torch.Tensor | None = None
) -> Packed:
    """Pack rows (B, P + T), padded left and right; consecutive rows with the same prompt form a group.

    Args:
        labels_BT: mask of the completion tokens that are labels; `None` for all that are not padded.
    """
    rows: list[tuple[list[int], list[int], list[int]]] = []
    labels = (attention_mask[:, -width_T:] if labels_BT is None else labels_BT).tolist()
    for ids_PT, mask_PT, labels_T in zip(input_ids.tolist(), attention_mask.tolist(), labels, strict=True):
        first, end = mask_PT.index(1), len(ids_PT) - width_T
        completion = ids_PT[end : end + sum(mask_PT[end:])]
        rows.append((ids_PT[first:end], completion, [t for t in range(len(completion)) if labels_T[t]]))

    device = input_ids.device
    tokens_L: list[int] = []
    positions_L: list[int] = []
    labels_K: list[int] = []
    labelled_K: list[int] = []
    groups: list[PackedGroup] = []
    for prompt, siblings in groupby(rows, key=lambda row: row[0]):
        branches = [(completion, labelled) for _, completion, labelled in siblings]
        head = len(prompt) - 1
        tokens_L += prompt[:head]
        positions_L += range(head)
        for completion, labelled in branches:
            labelled_K += [len(tokens_L) + t for t in labelled]
            tokens_L += [prompt[-1], *completion[:-1]]
            positions_L += range(head, head + len(completion))
            labels_K += [completion[t] for t in labelled]
        lengths_G = tuple(len(completion) for completion, _ in branches)
        sees = None
        if len(lengths_G) > 1:
            sees = torch.ones(max(lengths_G), head + max(lengths_G), dtype=torch.bool, device=device).tril(head)
        groups.append(PackedGroup(head, lengths_G, sees))
    return Packed(
        input_ids=torch.tensor([tokens_L], device=device),
        position_ids=torch.tensor([positions_L], device=device),
        shift_labels=torch.tensor([labels_K], device=device),
        shared_prefix=Layout(tuple(groups), torch.tensor(labelled_K, device=device)),
    )


def unpack(values_1K: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """Arrange values of the labelled positions as rows (B, T), 0 where there is no label."""
    return values_1K.new_zeros(labels_BT.shape).masked_scatter(labels_BT.bool(), values_1K)


def shared_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    shared_prefix: Layout,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention of a packed sequence, as transformers calls it: (1, heads, L, D) each to (1, L, heads, D).

    Prompts, and rows without siblings, use causal attention without a mask. Branches form a batch; their keys are the
    prompt's and their own. The sequence is split once: the gradient of a slice is as long as what it was cut from.
    """
    groups = shared_prefix.groups
    sections = [section for group in groups for section in group.sections]
    parts = zip(*(states.split(sections, dim=2) for states in (query, key, value)), strict=True)
    outputs: list[torch.Tensor] = []
    for group in groups:
        prompt_q, prompt_k, prompt_v = next(parts)
        if group.head or group.sees is None:
            prompt, _ = sdpa_attention_forward(module, prompt_q, prompt_k, prompt_v, None, **kwargs)
            outputs.append(prompt[0])
        if group.sees is None:
            continue
        n = len(group.lengths_G)
        q, k, v = (_branches(states[0], group.lengths_G) for states in next(parts))
        k = torch.cat([prompt_k.expand(n, -1, -1, -1), k], dim=2)
        v = torch.cat([prompt_v.expand(n, -1, -1, -1), v], dim=2)
        branches, _ = sdpa_attention_forward(module, q, k, v, group.sees[None, None], **kwargs)
        outputs += [branch[:length] for branch, length in zip(branches, group.lengths_G, strict=True)]
    return torch.cat(outputs)[None], None


def _branches(states_HLD: torch.Tensor, lengths_G: tuple[int, ...]) -> torch.Tensor:
    """Split (H, sum of lengths, D) into (G, H, T, D), padded right, where no earlier token attends."""
    return pad_sequence(list(states_HLD.transpose(0, 1).split(lengths_G)), batch_first=True).transpose(1, 2)


AttentionInterface.register(ATTENTION, shared_attention)

# ---- enabling packed groups in a model ----


def enable_sharing(model: PreTrainedModel, longest_row: int) -> bool:
    """Enable prompt sharing if the model supports it; otherwise log the reason."""
    if getattr(model.config.get_text_config(), "router_aux_loss_coef", 0.0):
        reason = "its experts' router loss is computed over padded rows"
    else:
        reason = share(model, longest_row)
    if reason:
        logger.warning("prompts are not shared, every row computes its own: %s", reason)
    return not reason


def share(model: PreTrainedModel, longest_row: int) -> str | None:
    """Make `model` accept packed sequences (`Packed`), and only these from then on.

    Returns:
        `None`, or the reason that it cannot, with the model unchanged. Sliding windows are fine if rows fit into them.
        A model that qualifies is tested: packed rows must have the same logprobs as single rows.
    """
    if reason := _obstacle(model, longest_row):
        return reason
    training = model.training
    model.eval()
    expected = alone(model)
    model.set_attn_implementation(ATTENTION)
    hook = model.base_model.register_forward_hook(_labelled_only, with_kwargs=True)
    try:
        gap = (_packed(model) - expected).abs().max().item()
        reason = f"packed rows get other logprobs, by {gap:.2g}" if not gap < max_gap(model) else None
    except Exception as error:  # an unknown model may fail in any way
        reason = f"packed rows fail: {error!r}"
    if reason:
        hook.remove()
        model.set_attn_implementation("sdpa")
    model.train(training)
    return reason


def _obstacle(model: PreTrainedModel, longest_row: int) -> str | None:
    config: Any = model.config.get_text_config()
    if config._attn_implementation != "sdpa":
        return f"its attention implementation is {config._attn_implementation!r}, not 'sdpa'"
    window: int = getattr(config, "sliding_window", None) or 0
    layers = getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"]
    if other := set(layers) - {"full_attention", "sliding_attention"}:
        return f"it has layers of {', '.join(sorted(other))}"
    if "sliding_attention" in layers and longest_row > window:
        return f"its sliding window of {window} tokens is shorter than the longest row of {longest_row}"
    return varying_positions(config, longest_row)


def _labelled_only(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Drop unlabelled positions after the backbone: the output head is a fifth of a small model's compute."""
    layout: Layout = kwargs["shared_prefix"]
    output.last_hidden_state = output.last_hidden_state[:, layout.labelled_K]
    return output


@torch.no_grad()
def _packed(model: PreTrainedModel) -> torch.Tensor:
    packed: Packed = pack(*trial_rows(model), WIDTH)
    logits_KV = model(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        shared_prefix=packed.shared_prefix,
        use_cache=False,
    ).logits[0]
    return chosen(logits_KV, packed.shift_labels[0])
