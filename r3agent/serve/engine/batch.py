"""The rows being generated, and the two forwards that move them on: prefill and decode.

B is the number of rows, R the number of distinct prompts in a prefill, P its longest prompt, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import Any

import torch
from torch import Tensor

from r3agent.serve.engine.cache import SlotCache
from r3agent.serve.engine.lora_batch import AdapterSwitch
from r3agent.serve.engine.request import PromptToken, Row, TopLogprobs
from r3agent.serve.engine.sampling import draw

SCORED_AT_ONCE = 256
"""Prompt positions whose whole distributions are held in memory at the same time."""


class Batch:
    """Rows and their keys and values; row i of the batch lives in slot i of the cache."""

    def __init__(self, model: Any) -> None:
        self.rows: list[Row] = []
        self._model = model
        self._device: torch.device = model.device
        self._switch = AdapterSwitch(model)
        self._cache = SlotCache(model.config.get_text_config().num_hidden_layers)

    def prefill(self, rows: Sequence[Row]) -> None:
        """Read the prompts of new rows, once for each request, and sample their first tokens."""
        requests = list(dict.fromkeys(row.request for row in rows))
        source_N = [requests.index(row.request) for row in rows]
        lengths_R = [len(request.prompt_token_ids) for request in requests]
        longest = max(lengths_R)
        padded = [[*r.prompt_token_ids, *[0] * (longest - n)] for r, n in zip(requests, lengths_R, strict=True)]
        scores_prompt = any(request.prompt_logprobs is not None for request in requests)
        kept = list(range(longest)) if scores_prompt else sorted({n - 1 for n in lengths_R})

        sources = None if len(rows) == len(requests) else torch.tensor(source_N, device=self._device)
        self._cache.prefill(len(self.rows), len(rows), sources)
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
                request.scored_prompt = score(logits_KV, request.prompt_token_ids, request.prompt_logprobs)
        last_N = torch.tensor([kept.index(lengths_R[source] - 1) for source in source_N], device=self._device)
        self._append(rows, logits_RKV[torch.tensor(source_N, device=self._device), last_N])
        self.rows += rows

    def decode(self) -> None:
        """Read every row's last token and sample the next one."""
        positions = [row.position for row in self.rows]
        n_columns = max(positions) + 1
        positions_B = torch.tensor(positions, device=self._device)
        self._cache.decode(positions_B, n_columns)
        self._switch.select([row.request.adapter for row in self.rows])
        dtype = self._model.dtype
        ahead_BL = torch.arange(n_columns, device=self._device) > positions_B.unsqueeze(1)
        mask_BL = torch.zeros(ahead_BL.shape, dtype=dtype, device=self._device)
        mask_BL.masked_fill_(ahead_BL, torch.finfo(dtype).min)
        logits_BTV: Tensor = self._model(
            input_ids=torch.tensor([[row.token_ids[-1]] for row in self.rows], device=self._device),
            position_ids=positions_B.unsqueeze(1),
            attention_mask=mask_BL[:, None, None],
            past_key_values=self._cache,
            use_cache=True,
        ).logits
        self._append(self.rows, logits_BTV[:, -1])

    def drop_finished(self) -> list[Row]:
        """Take finished rows out; the last row moves into the slot of each."""
        finished = [row for row in self.rows if row.finish_reason is not None]
        for slot in range(len(self.rows) - 1, -1, -1):
            if self.rows[slot].finish_reason is not None:
                last = self.rows.pop()
                if slot < len(self.rows):
                    self._cache.move(len(self.rows), slot)
                    self.rows[slot] = last
        if not self.rows:
            self._cache.clear()
        return finished

    def clear(self) -> list[Row]:
        """Take all rows out."""
        rows, self.rows = self.rows, []
        self._cache.clear()
        return rows

    def _append(self, rows: Sequence[Row], logits_BV: Tensor) -> None:
        logprobs_BV = logits_BV.float().log_softmax(-1)
        tokens_B1 = draw(
            allowed(logprobs_BV, [row.request.allowed_token_ids for row in rows]),
            [row.request.temperature for row in rows],
            [row.request.top_p for row in rows],
            [row.uniform() for row in rows],
        )
        tops = top_logprobs(logprobs_BV, [row.request.top_logprobs for row in rows])
        chosen = logprobs_BV.gather(1, tokens_B1).squeeze(1).tolist()
        for row, token, logprob, top in zip(rows, tokens_B1.squeeze(1).tolist(), chosen, tops, strict=True):
            if isnan(logprob):
                row.fail(FloatingPointError("the model's logits are not numbers: its weights are broken"))
            else:
                row.append(token, logprob, top)


def allowed(logprobs_BV: Tensor, token_ids_B: Sequence[frozenset[int]]) -> Tensor:
    """Minus infinity for what a row may not sample."""
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
    """For each row, as many of its most likely tokens as it asks for."""
    most = max(counts_B)
    if most == 0:
        return [[] for _ in counts_B]
    values, token_ids = logprobs_BV.topk(min(most, logprobs_BV.shape[-1]))
    pairs = zip(token_ids.tolist(), values.tolist(), counts_B, strict=True)
    return [list(zip(ids[:count], logprobs[:count], strict=True)) for ids, logprobs, count in pairs]


def score(logits_PV: Tensor, token_ids: Sequence[int], n_top: int) -> list[PromptToken]:
    """What the model says of each prompt token after the first."""
    scored: list[PromptToken] = []
    for start in range(0, len(token_ids) - 1, SCORED_AT_ONCE):
        targets = token_ids[start + 1 : start + 1 + SCORED_AT_ONCE]
        logprobs_TV = logits_PV[start : start + len(targets)].float().log_softmax(-1)
        own_T1 = logprobs_TV.gather(1, torch.tensor(targets, device=logits_PV.device).unsqueeze(1))
        ranks = (logprobs_TV > own_T1).sum(-1) + 1
        tops = top_logprobs(logprobs_TV, [n_top] * len(targets))
        rows = zip(targets, own_T1.squeeze(1).tolist(), ranks.tolist(), tops, strict=True)
        scored += [PromptToken(*row) for row in rows]
    return scored
