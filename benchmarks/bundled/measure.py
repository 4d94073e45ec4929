"""Measure the policy's use of hints: success with an oracle's, its own, a random and no reflection, on unseen problems.

`python -m benchmarks.bundled.measure [MODEL_DIR]` prints the table of the model's card.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from functools import partial
from statistics import fmean
from typing import Any, Protocol, TypeAlias, cast

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.bundled.conversations import assistant, first_steps, good_steps, hint, user
from benchmarks.bundled.steps import CALL
from r3agent.records.prompts import BLIND_RETRY, REFLECT, RETRY
from r3agent.records.trajectory import Message, Task
from r3agent.serve.http.tool_calls import CallReader
from r3agent.store.models import BUNDLED_DIR
from r3agent.tasks import countdown_steps
from r3agent.tasks.countdown import generate as countdown_problems
from r3agent.verifiers.countdown import countdown
from r3agent.verifiers.countdown_steps import Board

MAX_STEPS = 6
"""Turns in which a try by tool calls must end."""

Sampler: TypeAlias = Callable[[list[list[Message]]], list[str]]
"""Function that samples a reply to each conversation."""


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


class Player(Protocol):
    """Way to play a try: continue each conversation, and tell which ones reach the target."""

    def __call__(
        self, sample: Sampler, tasks: list[Task], conversations: list[list[Message]], /
    ) -> tuple[list[list[Message]], list[bool]]: ...


def write(
    sample: Sampler, tasks: list[Task], conversations: list[list[Message]]
) -> tuple[list[list[Message]], list[bool]]:
    """Write an equation."""
    texts = sample(conversations)
    continued = [[*c, assistant(text)] for c, text in zip(conversations, texts, strict=True)]
    return continued, [countdown(task, text).passed for task, text in zip(tasks, texts, strict=True)]


def call_tools(
    sample: Sampler, tasks: list[Task], conversations: list[list[Message]]
) -> tuple[list[list[Message]], list[bool]]:
    """Call the tool until the policy calls it no more, in at most `MAX_STEPS` turns."""
    boards = [Board(task.info["numbers"], task.info["target"]) for task in tasks]
    continued = [list(c) for c in conversations]
    playing = list(range(len(tasks)))
    for _ in range(MAX_STEPS):
        texts = sample([continued[i] for i in playing]) if playing else []
        going_on: list[int] = []
        for i, text in zip(playing, texts, strict=True):
            content, calls = CallReader().read(text, last=True)
            continued[i].append({"role": "assistant", "content": content, "tool_calls": calls})
            for call in calls:
                move: dict[str, Any] = json.loads(call["function"]["arguments"])
                result = boards[i].combine(move.get("a"), move.get("op"), move.get("b"))
                continued[i].append({"role": "tool", "tool_call_id": call["id"], "content": result})
            going_on += [i] if calls else []
        playing = going_on
    return continued, [board.is_won and i not in playing for i, board in enumerate(boards)]


def measure(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    play: Player = write,
    *,
    n: int = 600,
    seed: int = 0,
    temperature: float = 1.0,
) -> dict[str, float]:
    """Measure success on `n` test problems; retries are of problems whose first try failed."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    sample = partial(reply, model, tokenizer, temperature=temperature)
    made = countdown_steps.generate if play is call_tools else countdown_problems
    tasks = list(made(n, seed=seed, split="test"))
    tries, passes = play(sample, tasks, [list(task.messages) for task in tasks])
    failed = [task for task, passed in zip(tasks, passes, strict=True) if not passed]
    failures = [c for c, passed in zip(tries, passes, strict=True) if not passed]
    numbers = [tuple(task.info["numbers"]) for task in failed]
    own = sample([[*c, user(REFLECT)] for c in failures])
    oracle = [
        hint(rng.choice(good_steps(g, task.info["target"]) or first_steps(g)))
        for g, task in zip(numbers, failed, strict=True)
    ]
    at_random = [hint(rng.choice(first_steps(g))) for g in numbers]
    good = [
        any(hint(s) == text for s in good_steps(g, task.info["target"]))
        for g, task, text in zip(numbers, failed, own, strict=True)
    ]

    def after(reflections: list[str]) -> float:
        asked = [[user(REFLECT), assistant(text), user(RETRY)] for text in reflections]
        return share([[*c, *turns] for c, turns in zip(failures, asked, strict=True)])

    def share(conversations: list[list[Message]]) -> float:
        return fmean(play(sample, failed, conversations)[1])

    return {
        "first_try": fmean(passes),
        "retry_after_oracle_hint": after(oracle),
        "retry_after_own_reflection": after(own),
        "retry_after_random_hint": after(at_random),
        "retry_blind": share([[*c, user(BLIND_RETRY)] for c in failures]),
        "own_hint_is_good": fmean(good),
    }


if __name__ == "__main__":
    directory = sys.argv[1] if len(sys.argv) > 1 else str(BUNDLED_DIR)
    model, tokenizer = LlamaForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    play = call_tools if CALL in tokenizer.get_vocab() else write
    print(
        json.dumps({f"temperature {t:g}": measure(model, tokenizer, play, temperature=t) for t in (1.0, 0.0)}, indent=1)
    )
