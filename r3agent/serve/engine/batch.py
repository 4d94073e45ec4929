"""Batch of running sequences, and its two forward passes: prefill and decode.

Axes: B sequences, R distinct prompts of a prefill, N sequences that it starts, P tokens of its longest prompt, K
positions whose logits it keeps, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import Any

import torch
from torch import Tensor

from r3agent.serve.engine.cache import SlotCache
from r3agent.serve.engine.lora import AdapterSwitch
from r3agent.serve.engine.request import PromptToken, SequenceState, TopLogprobs
from r3agent.serve.engine.sampling import sample_tokens

SCORED_AT_ONCE = 256
"""Number of prompt positions whose full distributions are in memory at the same time."""


class Batch:
    """Running sequences with their KV cache; sequence i has slot i."""

    def __init__(self, model: Any) -> None:
        self.sequences: list[SequenceState] = []
        self._model = model
        self._device: torch.device = model.device
        self._switch = AdapterSwitch(model)
        self._cache = SlotCache(model.config.get_text_config().num_hidden_layers)

    def prefill(self, sequences: Sequence[SequenceState]) -> None:
        """Compute the prompts of new sequences, once for each request, and sample their first tokens."""
        requests = list(dict.fromkeys(sequence.request for sequence in sequences))
        source_N = [requests.index(sequence.request) for sequence in sequences]
        lengths_R = [len(request.prompt_token_ids) for request in requests]
        longest = max(lengths_R)
        padded = [[*r.prompt_token_ids, *[0] * (longest - n)] for r, n in zip(requests, lengths_R, strict=True)]
        scores_prompt = any(request.prompt_logprobs is not None for request in requests)
        kept = list(range(longest)) if scores_prompt else sorted({n - 1 for n in lengths_R})

        sources = None if len(sequences) == len(requests) else torch.tensor(source_N, device=self._device)
        self._cache.prefill(len(self.sequences), len(sequences), sources)
        self._switch.select([request.adapter for request in requests])
        logits_RKV: Tensor = self._model(
            input_ids=torch.tensor(padded, device=self._device),
            position_ids=torch.arange(longest, device=self._device).unsqueeze(0),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=torch.tensor(kept, device=self._device),
        ).logits
        for request, logits_KV in zip(requests, logits_RKV, strict=True):
            if request.prompt_logprobs is not None and request.scored_prompt is None:
                request.scored_prompt = score_prompt(logits_KV, request.prompt_token_ids, request.prompt_logprobs)
        last_N = torch.tensor([kept.index(lengths_R[source] - 1) for source in source_N], device=self._device)
        self._sample(sequences, logits_RKV[torch.tensor(source_N, device=self._device), last_N])
        self.sequences += sequences

    def decode(self) -> None:
        """Compute every sequence's last token and sample the next one."""
        positions = [sequence.position for sequence in self.sequences]
        n_columns = max(positions) + 1
        positions_B = torch.tensor(positions, device=self._device)
        self._cache.decode(positions_B, n_columns)
        self._switch.select([sequence.request.adapter for sequence in self.sequences])
        dtype = self._model.dtype
        ahead_BL = torch.arange(n_columns, device=self._device) > positions_B.unsqueeze(1)
        mask_BL = torch.zeros(ahead_BL.shape, dtype=dtype, device=self._device)
        mask_BL.masked_fill_(ahead_BL, torch.finfo(dtype).min)
        logits_BTV: Tensor = self._model(
            input_ids=torch.tensor([[sequence.token_ids[-1]] for sequence in self.sequences], device=self._device),
            position_ids=positions_B.unsqueeze(1),
            attention_mask=mask_BL[:, None, None],
            past_key_values=self._cache,
            use_cache=True,
        ).logits
        self._sample(self.sequences, logits_BTV[:, -1])

    def drop_finished(self) -> list[SequenceState]:
        """Remove and return finished sequences; the last sequence moves into the slot of each."""
        finished = [sequence for sequence in self.sequences if sequence.finish_reason is not None]
        for slot in range(len(self.sequences) - 1, -1, -1):
            if self.sequences[slot].finish_reason is not None:
                last = self.sequences.pop()
                if slot < len(self.sequences):
                    self._cache.move(len(self.sequences), slot)
                    self.sequences[slot] = last
        if not self.sequences:
            self._cache.clear()
        return finished

    def _sample(self, sequences: Sequence[SequenceState], logits_BV: Tensor) -> None:
        logprobs_BV = logits_BV.float().log_softmax(-1)
        tokens_B1 = sample_tokens(
            restrict_to_allowed(logprobs_BV, [sequence.request.allowed_token_ids for sequence in sequences]),
            [sequence.request.temperature for sequence in sequences],
            [sequence.request.top_p for sequence in sequences],
            [sequence.rng.random() for sequence in sequences],
        )
        tops = top_logprobs(logprobs_BV, [sequence.request.top_logprobs for sequence in sequences])
        chosen = logprobs_BV.gather(1, tokens_B1).squeeze(1).tolist()
        for sequence, token, logprob, top in zip(sequences, tokens_B1.squeeze(1).tolist(), chosen, tops, strict=True):
            if isnan(logprob):
                sequence.fail(FloatingPointError("the model's logits are not numbers: its weights are broken"))
            else:
                sequence.append(token, logprob, top)


def restrict_to_allowed(logprobs_BV: Tensor, token_ids_B: Sequence[frozenset[int]]) -> Tensor:
    """Set the logprobs of disallowed tokens to minus infinity, and renormalise the others."""
    if not any(token_ids_B):
        return logprobs_BV
    left_BV = logprobs_BV.clone()
    for row_V, token_ids in zip(left_BV, token_ids_B, strict=True):
        if token_ids:
            kept = torch.tensor(sorted(token_ids), device=row_V.device)
            values = row_V[kept]
            row_V.fill_(float("-inf"))
            row_V[kept] = values.log_softmax(-1)
    return left_BV


def top_logprobs(logprobs_BV: Tensor, counts_B: Sequence[int]) -> list[TopLogprobs]:
    """Return the most likely tokens of each sequence, as many as its count."""
    most = max(counts_B)
    if most == 0:
        return [[] for _ in counts_B]
    values, token_ids = logprobs_BV.topk(min(most, logprobs_BV.shape[-1]))
    pairs = zip(token_ids.tolist(), values.tolist(), counts_B, strict=True)
    return [list(zip(ids[:count], logprobs[:count], strict=True)) for ids, logprobs, count in pairs]


def score_prompt(logits_PV: Tensor, token_ids: Sequence[int], n_top: int) -> list[PromptToken]:
    """Compute the logprob and rank of each prompt token after the first, and its `n_top` most likely alternatives."""
    scored: list[PromptToken] = []
    for start in range(0, len(token_ids) - 1, SCORED_AT_ONCE):
        targets = token_ids[start + 1 : start + 1 + SCORED_AT_ONCE]
        logprobs_TV = logits_PV[start : start + len(targets)].float().log_softmax(-1)
        own_T1 = logprobs_TV.gather(1, torch.tensor(targets, device=logits_PV.device).unsqueeze(1))
        ranks = (logprobs_TV > own_T1).sum(-1) + 1
        tops = top_logprobs(logprobs_TV, [n_top] * len(targets))
        tokens = zip(targets, own_T1.squeeze(1).tolist(), ranks.tolist(), tops, strict=True)
        scored += [PromptToken(*token) for token in tokens]
    return scored
