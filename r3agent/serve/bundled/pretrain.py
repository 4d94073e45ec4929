"""Train the bundled policy from scratch: `python -m r3agent.serve.bundled.pretrain --out DIR --seed 0`.

A Llama of under a million parameters learns Countdown conversations (`conversations.py`): how to solve, then how
to reflect and to follow a reflection, then careless habits on top. Problems of the test split are never shown.
"""

from __future__ import annotations

import argparse
import logging
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from r3agent.serve.bundled.conversations import HABITS, SKILL, SOLVE, Mixture, conversation
from r3agent.serve.bundled.tokenizer import build_tokenizer
from r3agent.tasks.countdown import generate, make_task
from r3agent.trajectory import Message, Task

logger = logging.getLogger(__name__)

BATCH = 256
PEAK_LR = 2e-3
LESSONS: tuple[tuple[Mixture, int], ...] = ((SOLVE, 3000), (SKILL, 700), (HABITS, 350))
"""Each mixture and its optimizer steps."""
PAD_TO = 28
"""Lengths are rounded up to a multiple of this, so that there are few shapes to compile."""


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
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


class Encoder:
    """Conversations to token ids and a mask of what the assistant said, end of turn included."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.memo: dict[str, list[int]] = {}

    def __call__(self, messages: list[Message]) -> tuple[list[int], list[bool]]:
        ids: list[int] = []
        mask: list[bool] = []
        for message in messages:
            said = self._ids(f"{message['content']} <|end|>")
            ids += [*self._ids(f"<|{message['role']}|>"), *said]
            mask += [False, *([message["role"] == "assistant"] * len(said))]
        return ids, mask

    def _ids(self, text: str) -> list[int]:
        if text not in self.memo:
            self.memo[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self.memo[text]


def batches(encode: Encoder, tasks: list[Task], seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The lessons in order, as ids and loss mask of shape (BATCH, T), padded right."""
    rng = random.Random(seed)
    for mixture, n_steps in LESSONS:
        for _ in range(n_steps):
            rows = [encode(conversation(shuffled(rng.choice(tasks), rng), mixture, rng)) for _ in range(BATCH)]
            length = -(-max(len(ids) for ids, _ in rows) // PAD_TO) * PAD_TO
            ids_BT = torch.full((BATCH, length), encode.tokenizer.pad_token_id)
            mask_BT = torch.zeros(BATCH, length, dtype=torch.bool)
            for i, (ids, mask) in enumerate(rows):
                ids_BT[i, : len(ids)] = torch.tensor(ids)
                mask_BT[i, : len(mask)] = torch.tensor(mask)
            yield ids_BT, mask_BT


def shuffled(task: Task, rng: random.Random) -> Task:
    """The same problem with its numbers in another order."""
    given = rng.sample(task.info["numbers"], k=len(task.info["numbers"]))
    return make_task(given, task.info["target"])


def pretrain(out: Path, *, seed: int = 0, compiled: bool = False) -> None:
    """Train from scratch and save model, tokenizer and chat template to `out`."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    body = torch.compile(model.model) if compiled else model.model
    n_steps = sum(n for _, n in LESSONS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, weight_decay=0.1, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=n_steps, pct_start=0.05)
    tasks = list(generate(5500, seed=seed, max_number=15, max_target=100))
    start = time.monotonic()
    for step, (ids_BT, mask_BT) in enumerate(batches(Encoder(tokenizer), tasks, seed), start=1):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden_BTH = body(input_ids=ids_BT[:, :-1], use_cache=False).last_hidden_state
            logits_NV = model.lm_head(hidden_BTH[mask_BT[:, 1:]])
        loss = cross_entropy(logits_NV.float(), ids_BT[:, 1:][mask_BT[:, 1:]])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            logger.info("step %d/%d loss %.4f %.0f s", step, n_steps, loss.item(), time.monotonic() - start)
        if step % 500 == 0:
            model.save_pretrained(out)
            tokenizer.save_pretrained(out)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="a third faster, where a C++ compiler is installed")
    options = parser.parse_args()
    pretrain(options.out, seed=options.seed, compiled=options.compile)
