"""A policy whose tokens are bytes, so that it can write anything, and which was taught two replies by heart.

It thinks aloud first. Asked with tools it then calls one, in the words of the `hermes` parser; else it answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|tool|>")
THINKING = ("<think>", "</think>")
"""vLLM's reasoning parsers look for single tokens."""
TEMPLATE = (
    "{% for tool in tools or [] %}<|tool|>{{ tool.function.name }}{% endfor %}"
    "{% for m in messages %}<|{{ 'assistant' if m.role == 'assistant' else 'user' }}|>"
    "{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "unit": "C"}}\n</tool_call>'
THOUGHT, ANSWER = "<think>5 and 7 is 12.</think>", "I do not know."
MAX_STEPS = 1000
GOOD_ENOUGH = 2e-3
"""Nats per token, at temperature 1; at a lower one the reply comes to the letter."""


def save_bytes_model(directory: Path, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> Path:
    """Taught what to reply to `messages`, with and without `tools`."""
    tokenizer = bytes_tokenizer()
    lessons = [(tools, THOUGHT + CALL), (None, THOUGHT + ANSWER)]
    examples = [_example(tokenizer, messages, shown, reply) for shown, reply in lessons]
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(MAX_STEPS):
        loss = torch.stack([_loss(model, *example) for example in examples]).mean()
        if loss < GOOD_ENOUGH:
            break
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    else:
        raise AssertionError(f"the replies were not learnt within {MAX_STEPS} steps")
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *THINKING, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")
    fast.add_special_tokens({"additional_special_tokens": list(SPECIAL[2:])})
    fast.add_tokens([AddedToken(token, special=False, normalized=False) for token in THINKING])
    fast.chat_template = TEMPLATE
    return fast


def _example(tokenizer: Any, messages: Any, tools: Any, reply: str) -> tuple[torch.Tensor, int]:
    """Token ids (1, T), and at which of them the reply begins."""
    prompt = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, f"{reply}<|end|>")]
    return torch.tensor([ids[0] + ids[1]]), len(ids[0])


def _loss(model: LlamaForCausalLM, ids_1T: torch.Tensor, begin: int) -> torch.Tensor:
    logits_TV = model(input_ids=ids_1T).logits[0, begin - 1 : -1]
    return cross_entropy(logits_TV, ids_1T[0, begin:])
