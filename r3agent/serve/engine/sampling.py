"""Sampling of one token per row of a batch; each row has its own temperature, top_p and random numbers.

A row draws one number in [0, 1) per token and takes the token at which the cumulative distribution, in vocabulary
order, passes it. So a seeded row does not depend on the rest of its batch, except through the logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def sample_tokens(
    logprobs_BV: Tensor,
    temperatures_B: Sequence[float],
    top_ps_B: Sequence[float],
    uniforms_B: Sequence[float],
) -> Tensor:
    """Sample token ids, [B, 1].

    Args:
        logprobs_BV: log softmax of the model's logits.
        temperatures_B: divisors of the logprobs; 0 takes the most likely token.
        top_ps_B: sample from the smallest set of most likely tokens with at least this probability.
        uniforms_B: random number in [0, 1) for each row.
    """
    greedy = [temperature == 0 for temperature in temperatures_B]
    if all(greedy):
        return logprobs_BV.argmax(-1, keepdim=True)
    probs_BV = _probabilities(logprobs_BV, temperatures_B)
    if any(top_p < 1 for top_p in top_ps_B):
        probs_BV = _nucleus(probs_BV, _column(top_ps_B, probs_BV))
    # In float32 the tail of a large vocabulary would be rounded away.
    cumulative_BV = probs_BV.double().cumsum(-1)
    thresholds_B1 = _column(uniforms_B, cumulative_BV) * cumulative_BV[:, -1:]
    tokens_B1 = torch.searchsorted(cumulative_BV, thresholds_B1, right=True)
    # Only a row of NaNs goes past the end; the caller checks its logprob.
    tokens_B1.clamp_(max=logprobs_BV.shape[-1] - 1)
    if any(greedy):
        greedy_B1 = torch.tensor(greedy, device=logprobs_BV.device).unsqueeze(1)
        tokens_B1 = torch.where(greedy_B1, logprobs_BV.argmax(-1, keepdim=True), tokens_B1)
    return tokens_B1


def _probabilities(logprobs_BV: Tensor, temperatures_B: Sequence[float]) -> Tensor:
    if all(temperature == 1 for temperature in temperatures_B):
        return logprobs_BV.exp()
    divisors = [temperature or 1.0 for temperature in temperatures_B]
    return (logprobs_BV / _column(divisors, logprobs_BV)).softmax(-1)


def _nucleus(probs_BV: Tensor, top_ps_B1: Tensor) -> Tensor:
    """Zero tokens outside the nucleus; a token stays if the more likely ones have less than top_p together."""
    ordered_BV, order_BV = probs_BV.sort(descending=True, stable=True, dim=-1)
    before_BV = ordered_BV.cumsum(-1) - ordered_BV
    outside_BV = (before_BV >= top_ps_B1) & (top_ps_B1 < 1)
    return probs_BV.masked_fill(torch.zeros_like(outside_BV).scatter(1, order_BV, outside_BV), 0.0)


def _column(values_B: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values_B, dtype=like.dtype, device=like.device).unsqueeze(1)
