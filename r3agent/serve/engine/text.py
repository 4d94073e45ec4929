"""Decoding of tokens to text: all at the end, or token by token for stop strings and streams."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from tokenizers.decoders import DecodeStream


class TextStream:
    """Token-by-token decoder of one sequence, which ends the text before a stop string.

    Args:
        tokenizer: fast tokenizer of transformers.
        stop: strings that end the sequence.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self.text = ""
        self._tokenizer = tokenizer
        self._stop = stop
        self._lookback = max((len(s) for s in stop), default=1) - 1
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._token_ids: list[int] = []
        self._emitted = 0

    def append(self, token_id: int) -> str | None:
        """Add a token; return the stop string that it completed."""
        self._token_ids.append(token_id)
        piece = self._decode(token_id)
        searched_to = len(self.text)
        self.text += piece
        found = [(self.text.find(s, max(0, searched_to - len(s) + 1)), s) for s in self._stop if piece]
        starts = [(start + len(s), start, s) for start, s in found if start >= 0]
        if not starts:
            return None
        _, start, stop = min(starts)
        self.text = self.text[:start]
        return stop

    def _decode(self, token_id: int) -> str:
        try:
            return self._decoder.step(self._tokenizer.backend_tokenizer, token_id) or ""
        except Exception:
            # The decoder fails on byte sequences that are not UTF-8 (huggingface/tokenizers), so start a new one.
            self._decoder = DecodeStream(skip_special_tokens=True)
            return self._decoder.step(self._tokenizer.backend_tokenizer, token_id) or ""

    def finish(self, *, stopped: bool) -> None:
        """Complete the text after the last token; an incomplete character stays as decoded."""
        if not stopped:
            whole = self._tokenizer.decode(self._token_ids, skip_special_tokens=True)
            self.text = whole if whole.startswith(self.text) else self.text
        self._lookback = 0

    def take_new_text(self) -> str:
        """Return the text since the last call, without an end that may become a stop string."""
        end = max(self._emitted, len(self.text) - self._lookback)
        new, self._emitted = self.text[self._emitted : end], end
        return new


class Detokenizer:
    """Decoder of whole completions and of single tokens, which it caches because logprobs name every token."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.token = cache(self._token)
        """Text of a token and its UTF-8 bytes."""

    def text(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)

    def _token(self, token_id: int) -> tuple[str, list[int]]:
        text = self._tokenizer.decode([token_id])
        return text, list(text.encode("utf-8", errors="replace"))
