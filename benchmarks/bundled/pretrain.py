"""Train a bundled policy: `python -m benchmarks.bundled.pretrain --game equation --out DIR --seed 0`.

A Llama of under a million parameters learns Countdown conversations: to solve problems, then to reflect and to follow a
reflection. It writes an equation (`conversations.py`), with a last lesson in careless habits, or with `--game steps` it
calls a tool for each step (`steps.py`), and begins with the weights of the other policy. Problems of the test split are
never used.
"""

from __future__ import annotations

import argparse
import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.bundled import steps
from benchmarks.bundled.conversations import FOLLOW, HABITS, SKILL, SOLVE, Mixture, Play, conversation, written
from benchmarks.bundled.tokenizer import END_ID, PAD_ID, build_tokenizer
from r3agent.records.trajectory import Message, Task
from r3agent.store.models import BUNDLED_DIR
from r3agent.tasks import countdown_steps
from r3agent.tasks.countdown import generate, make_task

logger = logging.getLogger(__name__)


class Lesson(NamedTuple):
    """Training on one mixture for `n_steps` optimizer steps, with cosine decay from `lr` to `final_lr`."""

    mixture: Mixture
    n_steps: int
    lr: float
    final_lr: float
    batch: int = 256


LESSONS = (
    Lesson(SOLVE, 2000, lr=2e-3, final_lr=1e-3),
    Lesson(SKILL, 1000, lr=1.2e-3, final_lr=3e-4),
    Lesson(HABITS, 200, lr=3e-4, final_lr=1e-4),
)
LESSONS_IN_STEPS = (
    Lesson(SOLVE, 250, lr=1.5e-3, final_lr=5e-4),
    Lesson(SKILL, 400, lr=1.2e-3, final_lr=3e-4, batch=128),
    Lesson(FOLLOW, 300, lr=1e-3, final_lr=2e-4, batch=128),
    Lesson(HABITS, 80, lr=3e-4, final_lr=1e-4, batch=128),
)
WARMUP_STEPS = 30
N_PROBLEMS = 5200
"""Number of training problems; the train split has few more with numbers to 15 and targets to 100."""


class Game(NamedTuple):
    """Game that a policy learns."""

    build_tokenizer: Callable[[], PreTrainedTokenizerFast]
    make_task: Callable[[list[int], int], Task]
    play: Play
    lessons: Sequence[Lesson]
    teacher: Path | None = None
    """Policy whose weights it begins with."""


EQUATION = Game(build_tokenizer, make_task, written, LESSONS)
STEPS = Game(steps.build_tokenizer, countdown_steps.make_task, steps.play, LESSONS_IN_STEPS, BUNDLED_DIR)
GAMES = {"equation": EQUATION, "steps": STEPS}


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


def begin_with(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, teacher: Path) -> None:
    """Copy a policy's weights, and its embeddings of the tokens that both know or that mean the same."""
    weights: dict[str, torch.Tensor] = LlamaForCausalLM.from_pretrained(teacher).state_dict()
    known = AutoTokenizer.from_pretrained(teacher).get_vocab()
    embeddings_VD = model.state_dict()["model.embed_tokens.weight"].clone()
    for token, i in tokenizer.get_vocab().items():
        if (meaning := steps.MEANINGS.get(token, token)) in known:
            embeddings_VD[i] = weights["model.embed_tokens.weight"][known[meaning]]
    model.load_state_dict({**weights, "model.embed_tokens.weight": embeddings_VD, "lm_head.weight": embeddings_VD})


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
            content = self._ids(f"{steps.text_of(message)} <|end|>")
            ids += [*self._ids(f"<|{message['role']}|>"), *content]
            mask += [False, *([message["role"] == "assistant"] * len(content))]
        return ids, mask

    def _ids(self, text: str) -> list[int]:
        if text not in self.memo:
            self.memo[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self.memo[text]


def batches(
    encode: Encoder, lesson: Lesson, tasks: list[Task], rng: random.Random, game: Game
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield ids and loss masks of shape (lesson.batch, T), padded right, without end."""
    while True:
        rows = [
            encode(conversation(shuffled(rng.choice(tasks), rng, game), lesson.mixture, rng, game.play))
            for _ in range(lesson.batch)
        ]
        length = max(len(ids) for ids, _ in rows)
        ids_BT = torch.full((lesson.batch, length), PAD_ID)
        mask_BT = torch.zeros(lesson.batch, length, dtype=torch.bool)
        for i, (ids, mask) in enumerate(rows):
            ids_BT[i, : len(ids)] = torch.tensor(ids)
            mask_BT[i, : len(mask)] = torch.tensor(mask)
        yield ids_BT, mask_BT


def shuffled(task: Task, rng: random.Random, game: Game) -> Task:
    """Shuffle the numbers of a problem."""
    numbers = rng.sample(task.info["numbers"], k=len(task.info["numbers"]))
    return game.make_task(numbers, task.info["target"])


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


def pretrain(out: Path, *, seed: int = 0, game: Game = EQUATION, lessons: Sequence[Lesson] | None = None) -> None:
    """Train a policy and save it to `out` after each lesson."""
    torch.manual_seed(seed)
    tokenizer = game.build_tokenizer()
    model = build_model(tokenizer)
    if game.teacher is not None:
        begin_with(model, tokenizer, game.teacher)
    tasks = list(generate(N_PROBLEMS, seed=seed, max_number=15, max_target=100))
    for number, lesson in enumerate(lessons or game.lessons, start=1):
        logger.info("lesson %d of %d", number, len(lessons or game.lessons))
        encode = Encoder(tokenizer)
        teach(model, lesson, batches(encode, lesson, tasks, random.Random(f"{seed}:{number}"), game))
        untied(model).save_pretrained(out)
        tokenizer.save_pretrained(out)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--game", choices=GAMES, default="equation")
    options = parser.parse_args()
    pretrain(options.out, seed=options.seed, game=GAMES[options.game])
