"""Making a model take packed groups, or saying why it cannot."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel

from r3agent.train.prefix import Layout, Packed, pack, shared_attention

ATTENTION = "r3agent_shared_prefix"
"""Our attention's name among those of transformers."""

MAX_GAP = {torch.float32: 1e-3}
"""In nats, between packed and single rows on trial; more in half precision, where rounding alone gives more."""

AttentionInterface.register(ATTENTION, shared_attention)


def share(model: PreTrainedModel, longest_row: int) -> str | None:
    """Make `model` take packed sequences (`prefix.Packed`), and nothing else from then on.

    Returns:
        Why it cannot, and is left as it is, or `None`. Sliding windows do no harm while rows fit into them. A model
        that looks as if it could is tried: packed rows must have the logprobs that they have alone.
    """
    if reason := _obstacle(model, longest_row):
        return reason
    training = model.training
    model.eval()
    alone = _alone(model)
    model.set_attn_implementation(ATTENTION)
    hook = model.base_model.register_forward_hook(_labelled_only, with_kwargs=True)
    try:
        gap = (_packed(model) - alone).abs().max().item()
        reason = f"packed rows get other logprobs, by {gap:.2g}" if not gap < MAX_GAP.get(model.dtype, 0.25) else None
    except Exception as error:  # whatever goes wrong inside a model that we do not know
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
    return None


def _labelled_only(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """After the backbone: positions without a label need no output head, a fifth of a small model's work."""
    layout: Layout = kwargs["shared_prefix"]
    output.last_hidden_state = output.last_hidden_state[:, layout.labelled_K]
    return output


# ---- the trial: two siblings and a stranger ----

PROMPT, WIDTH = 5, 3
LENGTHS = (3, 2, 3)


def _rows(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """(3, 8) ids and mask."""
    ids = torch.arange(1, 1 + len(LENGTHS) * (PROMPT + WIDTH)).view(len(LENGTHS), -1) % model.config.vocab_size
    ids[1, :PROMPT] = ids[0, :PROMPT]
    mask = torch.tensor([[1] * (PROMPT + n) + [0] * (WIDTH - n) for n in LENGTHS])
    return ids.to(model.device), mask.to(model.device)


@torch.no_grad()
def _alone(model: PreTrainedModel) -> torch.Tensor:
    ids, _ = _rows(model)
    rows = [ids[i : i + 1, : PROMPT + n] for i, n in enumerate(LENGTHS)]
    return torch.cat([_chosen(model(input_ids=row).logits[0, PROMPT - 1 : -1], row[0, PROMPT:]) for row in rows])


@torch.no_grad()
def _packed(model: PreTrainedModel) -> torch.Tensor:
    packed: Packed = pack(*_rows(model), WIDTH)
    logits_KV = model(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        shared_prefix=packed.shared_prefix,
        use_cache=False,
    ).logits[0]
    return _chosen(logits_KV, packed.shift_labels[0])


def _chosen(logits_KV: torch.Tensor, ids_K: torch.Tensor) -> torch.Tensor:
    return logits_KV.float().log_softmax(-1).gather(-1, ids_K[:, None])[:, 0]
