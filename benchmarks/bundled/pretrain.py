"""Train the bundled policy from scratch: `python -m benchmarks.bundled.pretrain --out DIR --seed 0`.

A Llama of under a million parameters learns Countdown conversations (`conversations.py`): to solve problems, then to
reflect and to follow a reflection, and finally careless habits. Problems of the test split are never used.
"""

from __future__ import annotations

import argparse
import logging
import math
import random
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.bundled.conversations import HABITS, SKILL, SOLVE, Mixture, conversation
from benchmarks.bundled.tokenizer import END_ID, PAD_ID, build_tokenizer
from r3agent.records.trajectory import Message, Task
from r3agent.tasks.countdown import generate, make_task

logger = logging.getLogger(__name__)

BATCH = 256


class Lesson(NamedTuple):
    """Training on one mixture for `n_steps` optimizer steps, with cosine decay from `lr` to `final_lr`."""

    mixture: Mixture
    n_steps: int
    lr: float
    final_lr: float


LESSONS = (
    Lesson(SOLVE, 2000, lr=2e-3, final_lr=1e-3),
    Lesson(SKILL, 1000, lr=1.2e-3, final_lr=3e-4),
    Lesson(HABITS, 200, lr=3e-4, final_lr=1e-4),
)
WARMUP_STEPS = 30
N_PROBLEMS = 5200
"""Number of training problems; the train split has few more with numbers to 15 and targets to 100."""


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
    )
    return LlamaForCausalLM(config)


def untied(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Untie the output head, because vLLM on CPUs cannot reload a tied one in place."""
    config = LlamaConfig.from_dict({**model.config.to_dict(), "tie_word_embeddings": False})
    copy = LlamaForCausalLM(config)
    weights = model.state_dict()
    copy.load_state_dict({**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()})
    return copy


class Encoder:
    """Encoder of conversations to token ids and a mask of the assistant's tokens, including the end of turn."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.memo: dict[str, list[int]] = {}

    def __call__(self, messages: list[Message]) -> tuple[list[int], list[bool]]:
        ids: list[int] = []
        mask: list[bool] = []
        for message in messages:
            content = self._ids(f"{message['content']} <|end|>")
            ids += [*self._ids(f"<|{message['role']}|>"), *content]
            mask += [False, *([message["role"] == "assistant"] * len(content))]
        return ids, mask

    def _ids(self, text: str) -> list[int]:
        if text not in self.memo:
            self.memo[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self.memo[text]


def batches(
    encode: Encoder, mixture: Mixture, tasks: list[Task], rng: random.Random
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield ids and loss masks of shape (BATCH, T), padded right, without end."""
    while True:
        rows = [encode(conversation(shuffled(rng.choice(tasks), rng), mixture, rng)) for _ in range(BATCH)]
        length = max(len(ids) for ids, _ in rows)
        ids_BT = torch.full((BATCH, length), PAD_ID)
        mask_BT = torch.zeros(BATCH, length, dtype=torch.bool)
        for i, (ids, mask) in enumerate(rows):
            ids_BT[i, : len(ids)] = torch.tensor(ids)
            mask_BT[i, : len(mask)] = torch.tensor(mask)
        yield ids_BT, mask_BT


def shuffled(task: Task, rng: random.Random) -> Task:
    """Shuffle the numbers of a problem."""
    numbers = rng.sample(task.info["numbers"], k=len(task.info["numbers"]))
    return make_task(numbers, task.info["target"])


def teach(model: LlamaForCausalLM, lesson: Lesson, data: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Train one lesson, with its own optimizer."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lesson.lr, weight_decay=0.1, betas=(0.9, 0.98))

    def share_of_lr(step: int) -> float:
        final = lesson.final_lr / lesson.lr
        fallen = final + (1 - final) * (1 + math.cos(math.pi * step / lesson.n_steps)) / 2
        return min(1, (step + 1) / WARMUP_STEPS) * fallen

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_lr)
    start = time.monotonic()
    for step, (ids_BT, mask_BT) in enumerate(islice(data, lesson.n_steps), start=1):
        hidden_BTD = model.model(input_ids=ids_BT[:, :-1], use_cache=False).last_hidden_state
        logits_NV = model.lm_head(hidden_BTD[mask_BT[:, 1:]])
        loss = cross_entropy(logits_NV, ids_BT[:, 1:][mask_BT[:, 1:]])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            logger.info("step %d/%d loss %.4f %.0f s", step, lesson.n_steps, loss.item(), time.monotonic() - start)


def pretrain(out: Path, *, seed: int = 0, lessons: Sequence[Lesson] = LESSONS) -> None:
    """Train from scratch and save to `out` after each lesson."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    tasks = list(generate(N_PROBLEMS, seed=seed, max_number=15, max_target=100))
    for number, lesson in enumerate(lessons, start=1):
        logger.info("lesson %d of %d", number, len(lessons))
        data = batches(Encoder(tokenizer), lesson.mixture, tasks, random.Random(f"{seed}:{number}"))
        teach(model, lesson, data)
        untied(model).save_pretrained(out)
        tokenizer.save_pretrained(out)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    pretrain(options.out, seed=options.seed)
