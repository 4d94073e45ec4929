"""Tokenizer of the doubles: one token a UTF-8 byte, and one that ends the turn."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from r3agent.records.trajectory import Message

END_OF_TURN = 256
LOGPROB = -0.5
"""Log probability of every token."""


def encode(text: str) -> list[int]:
    return [*text.encode(), END_OF_TURN]


def encode_prompt(messages: Sequence[Message]) -> list[int]:
    return encode(json.dumps(list(messages)))


def pieces(text: str) -> list[str]:
    """Split `text` into the pieces of its stream: words, each with the space after it."""
    return re.findall(r"\s*\S+\s*|\s+", text)
