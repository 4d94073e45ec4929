"""A policy small enough to train in milliseconds, and trajectories recorded from it with plain transformers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from r3agent.tasks.countdown import make_task
from r3agent.trajectory import Span, Trajectory, Verdict


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
    """Of the completion tokens, without padding and without TRL."""
    ids = torch.tensor([[*prompt, *completion]])
    table_TV = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return table_TV[torch.arange(len(table_TV)), ids[0, 1:]].tolist()[len(prompt) - 1 :]


def record(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    outcomes: Sequence[Sequence[int]],
    *,
    blind: Sequence[int] = (),
    seed: int = 0,
    **fields: Any,
) -> list[Trajectory]:
    """`outcomes=[[1, 0], [0, 1, 1]]`: two failed attempts with 2 and 3 reflections, each with one retry that passed (1)
    or did not (0). Completions are random tokens of ragged length, their logprobs the model's own.

    Args:
        blind: outcomes of blind retries of every failed attempt.
        fields: what to set on every reflection.
    """
    rng = random.Random(seed)
    return [_episode(i, passed, blind, model, tokenizer, rng, fields) for i, passed in enumerate(outcomes)]


def _episode(
    number: int,
    outcomes: Sequence[int],
    blind: Sequence[int],
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    rng: random.Random,
    fields: dict[str, Any],
) -> Trajectory:
    task = make_task([rng.randint(1, 9) for _ in range(2 + number % 3)], rng.randint(1, 40))
    attempt = Span(label="attempt", span_id="a", text="<answer> 1 + 2 </answer>", model="tiny", verdict=_verdict(0))
    spans = [attempt, *(_retry(f"b{i}", "a", passed) for i, passed in enumerate(blind))]
    for i, passed in enumerate(outcomes):
        span = {
            "label": "reflect",
            "span_id": f"r{i}",
            "parent_id": "a",
            "request": ({"role": "user", "content": "Reflect"},),
            "text": "Start with 1 + 2",
            "model": "tiny",
            "policy_version": "v0000",
            "sampling": {"temperature": 1.0},
            "finish_reason": "stop",
        }
        messages = Trajectory(task=task, spans=(attempt, bare := Span.model_validate(span))).prompt(bare)
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        completion = [*(rng.randrange(7, 100) for _ in range(rng.randint(1, 6))), tokenizer.eos_token_id]
        tokens = {
            "prompt_token_ids": tuple(prompt),
            "token_ids": tuple(completion),
            "logprobs": tuple(logprobs(model, prompt, completion)),
            "capability": "trainable-exact",
        }
        spans += [Span.model_validate({**span, **tokens, **fields}), _retry(f"t{i}", f"r{i}", passed)]
    return Trajectory(trajectory_id=f"e{number}", task=task, spans=tuple(spans))


def _retry(span_id: str, parent_id: str, passed: int) -> Span:
    return Span(label="retry", span_id=span_id, parent_id=parent_id, text="", model="tiny", verdict=_verdict(passed))


def _verdict(passed: int) -> Verdict:
    return Verdict(passed=bool(passed), score=float(passed))
