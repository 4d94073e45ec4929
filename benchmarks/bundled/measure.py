"""Measure the policy's use of hints: success with an oracle's, its own, a random and no reflection, on unseen problems.

`python -m benchmarks.bundled.measure [MODEL_DIR]` prints the table of the model's card.
"""

from __future__ import annotations

import json
import random
import sys
from statistics import fmean
from typing import Any, cast

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.bundled.conversations import assistant, first_steps, good_steps, hint, user
from r3agent.records.prompts import BLIND_RETRY, REFLECT, RETRY
from r3agent.records.trajectory import Message
from r3agent.store.models import BUNDLED_DIR
from r3agent.tasks.countdown import generate
from r3agent.verifiers.countdown import countdown


@torch.inference_mode()
def reply(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, conversations: list[list[Message]], temperature: float
) -> list[str]:
    """Sample one reply to each conversation; temperature 0 is greedy."""
    tokenizer.padding_side = "left"
    prompts: Any = tokenizer.apply_chat_template(
        conversations, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    sampling: dict[str, Any] = (
        {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    )
    out = cast(Any, model).generate(**prompts, max_new_tokens=24, **sampling)
    return tokenizer.batch_decode(out[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)


def measure(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    n: int = 600,
    seed: int = 0,
    temperature: float = 1.0,
) -> dict[str, float]:
    """Measure success on `n` test problems; retries are of problems whose first try failed."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    tasks = list(generate(n, seed=seed, split="test"))
    prompts: list[list[Message]] = [list(task.messages) for task in tasks]
    first = reply(model, tokenizer, prompts, temperature)
    failed = [
        (task, [*task.messages, assistant(text)])
        for task, text in zip(tasks, first, strict=True)
        if not countdown(task, text).passed
    ]
    numbers = [tuple(task.info["numbers"]) for task, _ in failed]
    own = reply(model, tokenizer, [[*c, user(REFLECT)] for _, c in failed], temperature)
    oracle = [
        hint(rng.choice(good_steps(g, task.info["target"]) or first_steps(g)))
        for g, (task, _) in zip(numbers, failed, strict=True)
    ]
    at_random = [hint(rng.choice(first_steps(g))) for g in numbers]
    good = [
        any(hint(s) == text for s in good_steps(g, task.info["target"]))
        for g, (task, _), text in zip(numbers, failed, own, strict=True)
    ]

    def after(reflections: list[str]) -> float:
        turns = [[*c, user(REFLECT), assistant(r), user(RETRY)] for (_, c), r in zip(failed, reflections, strict=True)]
        return passed(reply(model, tokenizer, turns, temperature))

    def passed(texts: list[str]) -> float:
        return fmean(countdown(task, text).passed for (task, _), text in zip(failed, texts, strict=True))

    return {
        "first_try": 1 - len(failed) / n,
        "retry_after_oracle_hint": after(oracle),
        "retry_after_own_reflection": after(own),
        "retry_after_random_hint": after(at_random),
        "retry_blind": passed(reply(model, tokenizer, [[*c, user(BLIND_RETRY)] for _, c in failed], temperature)),
        "own_hint_is_good": fmean(good),
    }


if __name__ == "__main__":
    directory = sys.argv[1] if len(sys.argv) > 1 else str(BUNDLED_DIR)
    model, tokenizer = LlamaForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    print(json.dumps({f"temperature {t:g}": measure(model, tokenizer, temperature=t) for t in (1.0, 0.0)}, indent=1))
