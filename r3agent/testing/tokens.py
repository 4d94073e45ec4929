"""Tokenizer of the test doubles: one token per UTF-8 byte, and an end-of-turn token."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from r3agent.records.json_values import well_formed
from r3agent.records.reply import text_of
from r3agent.records.trajectory import Message

END_OF_TURN = 256
LOGPROB = -0.5
"""Logprob of every token."""


def encode(text: str) -> list[int]:
    return [*well_formed(text).encode(), END_OF_TURN]


def encode_prompt(messages: Sequence[Message]) -> list[int]:
    return encode(json.dumps(list(messages)))


def sampled_text(message: Message) -> str:
    """Return the sampled text, including thinking from a separate field."""
    return str(message.get("reasoning") or message.get("reasoning_content") or "") + text_of(message.get("content"))


def pieces(text: str) -> list[str]:
    """Split `text` into the pieces of its stream: words, each with its trailing space."""
    return re.findall(r"\s*\S+\s*|\s+", text)
