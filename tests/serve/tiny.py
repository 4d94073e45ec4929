"""A tiny random policy, adapters for it, and the tokens that transformers generates with them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks.bundled.tokenizer import CHAT_TEMPLATE, build_tokenizer
from r3agent.serve import Engine
from r3agent.serve.engine.request import Chunk, Event, GenerationRequest

MAX_LENGTH = 256

PROMPTS = [[4, 16, 27, 28, 29, 2, 5], [4, 50, 2, 5], [4, *range(30, 60), 2, 5], [4, 16, 90, 17, 41, 2, 5]]
"""Prompts of different lengths, so that a batch of them is ragged."""


def save_model(directory: Path, *, seed: int = 0, hidden_size: int = 64) -> Path:
    """A checkpoint with its tokenizer; the template has a place for tools."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    tokenizer.chat_template = "{% for tool in tools or [] %}{{ tool.function.name }} {% endfor %}" + CHAT_TEMPLATE
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def save_adapter(directory: Path, base: Path, *, seed: int, rank: int, targets: str | list[str], **config: Any) -> Path:
    """A LoRA adapter that changes the base visibly."""
    torch.manual_seed(seed)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=rank, lora_alpha=3 * rank, target_modules=targets, init_lora_weights=False, **config),
    )
    model.save_pretrained(directory)
    return directory


def reference(base: Path, adapter: Path | None = None) -> Any:
    """The model as transformers and peft load it."""
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    return model if adapter is None else PeftModel.from_pretrained(model, adapter).eval()


@torch.no_grad()
def greedy(model: Any, prompt: Sequence[int], n_tokens: int) -> tuple[list[int], list[float]]:
    """Token ids and logprobs of `model.generate`, past the end of the turn."""
    out = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        eos_token_id=-1,
        max_new_tokens=n_tokens,
        output_logits=True,
        return_dict_in_generate=True,
    )
    token_ids = out.sequences[0, len(prompt) :].tolist()
    logprobs = [logits[0].log_softmax(-1)[t].item() for t, logits in zip(token_ids, out.logits, strict=True)]
    return token_ids, logprobs


class RunningRequest:
    """A request that an engine works on; it ends with the turn only if `stop_token_ids` are passed."""

    def __init__(self, engine: Engine, **fields: Any) -> None:
        self.chunks: list[Chunk] = []
        self.error: BaseException | None = None
        self.streaming = threading.Event()
        self._done = threading.Event()
        self.request = GenerationRequest(on_event=self._on_event, **{"max_tokens": 8, **fields})
        engine.submit(self.request)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Chunk):
            self.chunks.append(event)
            self.streaming.set()
            return
        self.error = event
        self._done.set()

    def wait(self, timeout_s: float = 60) -> GenerationRequest:
        """The finished request.

        Raises:
            APIError: what it failed with.
        """
        assert self._done.wait(timeout_s), "the request does not end"
        if self.error is not None:
            raise self.error
        return self.request
