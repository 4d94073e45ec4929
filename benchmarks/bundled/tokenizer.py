"""Tokenizer of the bundled policy: one token for each known number and word; unknown words are dropped.

Dropping unknown words keeps a conversation at about 60 tokens and makes the policy independent of a prompt's wording,
as long as its key words are present.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

MAX_NUMBER = 100
SPECIAL = ["<pad>", "<unk>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
PAD_ID, END_ID = SPECIAL.index("<pad>"), SPECIAL.index("<|end|>")
SYMBOLS = ["+", "-", "*", "/", "(", ")", "=", "<answer>", "</answer>"]
WORDS = ["Using", "equals", "wrong", "Reflect", "again", "reflection", "Start", "with"]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] }} <|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer_of(SYMBOLS, WORDS, CHAT_TEMPLATE)


def tokenizer_of(symbols: Sequence[str], words: Sequence[str], template: str) -> PreTrainedTokenizerFast:
    """Make a tokenizer of the special tokens, symbols, words and numbers; where symbols overlap, the first is read."""
    entries = [*SPECIAL, *symbols, *words, *map(str, range(MAX_NUMBER + 1))]
    tokenizer = Tokenizer(WordLevel({entry: i for i, entry in enumerate(entries)}, unk_token="<unk>"))
    pattern = rf"\d+|{'|'.join(map(re.escape, symbols))}|\b(?:{'|'.join(words)})\b"
    tokenizer.pre_tokenizer = Split(Regex(pattern), behavior="removed", invert=True)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|end|>",
        additional_special_tokens=SPECIAL[3:],
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = template
    return fast
