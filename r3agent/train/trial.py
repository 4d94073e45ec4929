"""Trial of a model on three small rows: whether they can be computed together, and what their logprobs are alone."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

PROMPT, WIDTH = 5, 3
LENGTHS = (3, 2, 3)
PADDING = 3
"""Padding on the left in the trial of padded rows."""


def trial_rows(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Make the ids and the mask, each (3, 8): two siblings and an unrelated row."""
    ids = (
        torch.arange(1, 1 + len(LENGTHS) * (PROMPT + WIDTH)).view(len(LENGTHS), -1)
        % model.config.get_text_config().vocab_size
    )
    ids[1, :PROMPT] = ids[0, :PROMPT]
    mask = torch.tensor([[1] * (PROMPT + n) + [0] * (WIDTH - n) for n in LENGTHS])
    return ids.to(model.device), mask.to(model.device)


def trial_pairs(model: PreTrainedModel) -> list[tuple[list[int], list[int]]]:
    """Make the trial's rows: pairs of prompt ids and completion ids."""
    ids, _ = trial_rows(model)
    return [(row[:PROMPT], row[PROMPT : PROMPT + n]) for row, n in zip(ids.tolist(), LENGTHS, strict=True)]


def trial_logprobs(model: PreTrainedModel) -> list[float]:
    """Compute the logprobs of the trial's completions, one after another, each row alone and as transformers does."""
    training = model.training
    model.eval()
    logprobs_K = alone(model).tolist()
    model.train(training)
    return logprobs_K


@torch.no_grad()
def alone(model: PreTrainedModel) -> torch.Tensor:
    """Compute the logprobs of the completions, one after another, each row by itself."""
    found: list[torch.Tensor] = []
    for prompt, completion in trial_pairs(model):
        row = torch.tensor([*prompt, *completion], device=model.device)
        logits_TV = model(input_ids=row[None], use_cache=False).logits[0, PROMPT - 1 : -1]
        found.append(chosen(logits_TV, row[PROMPT:]))
    return torch.cat(found)


@torch.no_grad()
def _padded(model: PreTrainedModel) -> torch.Tensor:
    """Compute the same as `alone` in one batch, with padding before the prompts and after the completions."""
    ids, mask = trial_rows(model)
    ids, mask = (torch.nn.functional.pad(x, (PADDING, 0)) for x in (ids, mask))
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    first = PADDING + PROMPT
    rows = [chosen(logits[i, first - 1 : first - 1 + n], ids[i, first : first + n]) for i, n in enumerate(LENGTHS)]
    return torch.cat(rows)


def padding_obstacle(model: PreTrainedModel, longest_row: int) -> str | None:
    """Return the reason that `model` cannot compute padded rows together, or `None`; it is tested on three rows.

    Prompts are padded on the left, which shifts absolute positions and enters the state of a recurrent layer.
    """
    if reason := varying_positions(model.config.get_text_config(), longest_row):
        return reason
    training = model.training
    model.eval()
    try:
        gap = (_padded(model) - alone(model)).abs().max().item()
        reason = f"padded rows get other logprobs, by {gap:.2g}" if not gap < max_gap(model) else None
    except Exception as error:  # an unknown model may fail in any way
        reason = f"padded rows fail: {error!r}"
    model.train(training)
    return reason


def varying_positions(config: Any, longest_row: int) -> str | None:
    """Return a reason if a row's position embeddings depend on the longest row that is computed with it."""
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    for kind in [rope, *(of_layers for of_layers in rope.values() if isinstance(of_layers, dict))]:
        limit = kind.get("original_max_position_embeddings") or getattr(config, "max_position_embeddings", 0)
        if kind.get("rope_type") in ("dynamic", "longrope") and longest_row > limit:
            return (
                f"its {kind['rope_type']} position embeddings depend on the length of rows of more than {limit} tokens"
            )
    return None


def max_gap(model: PreTrainedModel) -> float:
    """Return the limit in nats between the logprobs of a trial's two computations; half precision rounds by more."""
    return 1e-3 if model.dtype == torch.float32 else 0.25


def chosen(logits_KV: torch.Tensor, ids_K: torch.Tensor) -> torch.Tensor:
    return logits_KV.float().log_softmax(-1).gather(-1, ids_K[:, None])[:, 0]
