"""A server that samples independent tokens of one distribution, with raw logprobs unless they are processed."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from r3agent.testing import Fault

PROBS = {"a": 0.56, "b": 0.2, "c": 0.12, "d": 0.08, "e": 0.03, "f": 0.01}


@dataclass
class SamplingServer:
    """Answers as an OpenAI-compatible server with settings of its own for what a request leaves out."""

    defaults: dict[str, Any] = field(default_factory=dict)
    refuses: Sequence[str] = ()
    ignores: Sequence[str] = ()
    processed: bool = False
    rng: random.Random = field(default_factory=lambda: random.Random(0))

    def __call__(self, path: str, authorization: str | None, body: dict[str, Any] | None) -> Fault:
        if path == "/v1/models":
            return Fault(body=json.dumps({"data": [{"id": "m"}]}))
        if path != "/v1/chat/completions" or body is None:
            return Fault(404, json.dumps({"detail": "Not Found"}))
        if refused := next((name for name in self.refuses if name in body), None):
            return Fault(400, json.dumps({"error": {"message": f"Unknown parameter: '{refused}'."}}))
        return Fault(body=json.dumps(self.complete(body)))

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        asked = {**self.defaults, **{name: value for name, value in body.items() if name not in self.ignores}}
        choices = [self.choice(i, asked) for i in range(asked.get("n", 1))]
        sampled = sum(len(choice["token_ids"]) for choice in choices)
        usage = {"prompt_tokens": 3, "completion_tokens": sampled}
        return {"model": "m", "choices": choices, "usage": usage, "prompt_token_ids": [1, 2, 3]}

    def choice(self, index: int, asked: dict[str, Any]) -> dict[str, Any]:
        weights = reshaped(PROBS, asked)
        tokens = self.rng.choices([*weights], [*weights.values()], k=min(12, asked.get("max_tokens", 12)))
        scores = {token: math.log(prob) for token, prob in (weights if self.processed else PROBS).items() if prob}
        top = [{"token": token, "logprob": scores[token]} for token in sorted(scores, key=lambda token: -scores[token])]
        content = [{"token": token, "logprob": scores[token]} for token in tokens]
        if "top_logprobs" in asked:
            content = [{**entry, "top_logprobs": top[: asked["top_logprobs"]]} for entry in content]
        return {
            "index": index,
            "message": {"role": "assistant", "content": "".join(tokens)},
            "finish_reason": "length",
            "token_ids": [ord(token) for token in tokens],
            "logprobs": {"content": content},
        }


def reshaped(probs: dict[str, float], asked: dict[str, Any]) -> dict[str, float]:
    """The distribution under `temperature`, `top_k` and `top_p`."""
    weights = {token: prob ** (1 / asked.get("temperature", 1.0)) for token, prob in probs.items()}
    if (top_k := asked.get("top_k", -1)) > 0:
        weights = dict([*weights.items()][:top_k])
    total, nucleus = sum(weights.values()), dict[str, float]()
    for token, weight in weights.items():
        if sum(nucleus.values()) < asked.get("top_p", 1.0) * total:
            nucleus[token] = weight
    return {token: weight / sum(nucleus.values()) for token, weight in nucleus.items()}
