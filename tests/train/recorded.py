"""A policy small enough to train in milliseconds, and trajectories recorded from it with plain transformers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from r3agent.records.trajectory import Label, Span, Task, Trajectory, Verdict
from r3agent.tasks.countdown import make_task


def tiny_model(tokenizer: PreTrainedTokenizerFast, *, width: int = 32, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,  # logits far from uniform, so that wrong positions show
    )
    return LlamaForCausalLM(config)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, directory: Path) -> Path:
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def load(directory: Path | str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@torch.no_grad()
def logprobs(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
    """Logprobs of the completion tokens, without padding and without TRL."""
    ids = torch.tensor([[*prompt, *completion]])
    table_TV = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return table_TV[torch.arange(len(table_TV)), ids[0, 1:]].tolist()[len(prompt) - 1 :]


def record(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    outcomes: Sequence[Sequence[int | Sequence[int]]],
    *,
    blind: Sequence[int] = (),
    first: Sequence[int] = (),
    one_task: bool = False,
    prefix: Sequence[int] = (),
    sampled: int = 0,
    top_k: int = 0,
    seed: int = 0,
    **fields: Any,
) -> list[Trajectory]:
    """Record trees with these verdicts.

    `outcomes=[[1, 0], [0, 1, 1]]`: two failed attempts with 2 and 3 reflections, each with one retry that passed (1)
    or did not (0); `[[(1, 0)]]`: one reflection with two retries. Completions are random tokens of ragged length, their
    logprobs the model's own.

    Args:
        blind: outcomes of blind retries of every failed attempt.
        first: outcomes of the attempts, where they are not all failures.
        one_task: the episodes are samples of one task.
        prefix: tokens before every prompt.
        sampled: number of tokens to sample from the model, in place of random ones.
        top_k: limit of that sampling, which the logprobs do not show.
        fields: what to set on every reflection.
    """
    rng = random.Random(seed)
    recorder = _Recorder(model, tokenizer, random.Random(seed + 1), prefix, sampled, top_k)
    task: Task | None = None
    episodes: list[Trajectory] = []
    for number, reflected in enumerate(outcomes):
        if task is None or not one_task:
            task = make_task([rng.randint(1, 9) for _ in range(2 + number % 3)], rng.randint(1, 40))
        attempt = _span("attempt", "a", None, passed=first[number] if first else 0, text="<answer> 1 + 2 </answer>")
        spans = [recorder(task, [attempt])]
        spans += [
            recorder(task, [*spans[:1], _span("retry", f"b{i}", "a", passed=passed)])
            for i, passed in enumerate(() if attempt.verdict and attempt.verdict.passed else blind)
        ]
        for i, retries in enumerate(reflected):
            bare = _span("reflect", f"r{i}", "a", text="Start with 1 + 2", ask="Reflect")
            reflection = recorder(task, [spans[0], bare], rng)
            spans.append(Span.model_validate({**dict(reflection), **fields}))
            each = enumerate([retries] if isinstance(retries, int) else retries)
            spans += [
                recorder(task, [spans[0], reflection, _span("retry", f"t{i}{'abcdefgh'[j]}", f"r{i}", passed=passed)])
                for j, passed in each
            ]
        episodes.append(Trajectory(trajectory_id=f"e{number}", task=task, spans=tuple(spans)))
    return episodes


class _Recorder:
    """Gives a span the tokens that the model would have been asked with, random ones as sampled, and their logprobs."""

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerFast,
        rng: random.Random,
        prefix: Sequence[int],
        sampled: int,
        top_k: int,
    ) -> None:
        self.model, self.tokenizer, self.rng, self.prefix = model, tokenizer, rng, prefix
        self.sampled, self.top_k = sampled, top_k

    def __call__(self, task: Task, path: Sequence[Span], rng: random.Random | None = None) -> Span:
        """The last span of the path, recorded."""
        span, rng = path[-1], rng or self.rng
        messages = Trajectory(task=task, spans=tuple(path)).prompt(span)
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt = [*self.prefix, *self.tokenizer(text, add_special_tokens=False)["input_ids"]]
        completion = [*(rng.randrange(7, 100) for _ in range(rng.randint(1, 6))), self.tokenizer.eos_token_id]
        if self.sampled:
            torch.manual_seed(rng.randrange(2**32))
            limits = {"min_new_tokens": self.sampled, "max_new_tokens": self.sampled, "do_sample": True}
            limits |= {"top_k": self.top_k}
            completion = self.model.generate(torch.tensor([prompt]), **limits)[0, len(prompt) :].tolist()
        tokens = {
            "prompt_token_ids": tuple(prompt),
            "token_ids": tuple(completion),
            "logprobs": tuple(logprobs(self.model, prompt, completion)),
            "capability": "trainable-exact",
        }
        return Span.model_validate({**dict(span), **tokens})


def _span(
    label: Label, span_id: str, parent_id: str | None, *, passed: int | None = None, text: str = "", ask: str = ""
) -> Span:
    return Span(
        label=label,
        span_id=span_id,
        parent_id=parent_id,
        request=({"role": "user", "content": ask},) if ask else (),
        text=text,
        model="tiny",
        policy_version="v0000",
        sampling={"temperature": 1.0},
        finish_reason="stop",
        verdict=None if passed is None else Verdict(passed=bool(passed), score=float(passed)),
    )
