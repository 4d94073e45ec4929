"""Token ids to text, one piece for each token, with the tokenizer of a model on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from r3agent._util.imports import require_extra
from r3agent.errors import ConfigError

TOKENIZER_FILE = "tokenizer.json"

TokenTexts: TypeAlias = Callable[[Sequence[int]], list[str]]
"""T token ids to T texts that joined are the text; a character of several tokens stands at the last of them."""


def token_texts(model: str) -> TokenTexts:
    """For the tokenizer of a model directory, or of a hub id that was downloaded before; nothing is downloaded.

    Raises:
        ConfigError: there is no such tokenizer on this machine, or the extra is missing.
    """
    require_extra("tokenizers", "train")
    from tokenizers import Tokenizer

    file = _file(model)
    if file is None:
        raise ConfigError(f"{model}: no {TOKENIZER_FILE} of it on this machine; name a directory that has it")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ConfigError(f"{file} cannot be read: {error}; copy or download it again") from error

    def texts(ids_T: Sequence[int]) -> list[str]:
        pieces_T: list[str] = []
        first = told = 0  # what lies before may change a token's text: the last piece is decoded with it
        for end in range(1, len(ids_T) + 1):
            before, now = (tokenizer.decode(ids_T[first:to], skip_special_tokens=False) for to in (told, end))
            whole = not now.endswith("\N{REPLACEMENT CHARACTER}") or end == len(ids_T)
            pieces_T.append(now[len(before) :] if whole else "")
            if whole:
                first, told = told, end
        return pieces_T

    return texts


def _file(model: str) -> Path | None:
    if (file := Path(model) / TOKENIZER_FILE).is_file():
        return file
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(model, TOKENIZER_FILE)
    except HFValidationError:  # a path, not an id
        return None
    return Path(cached) if isinstance(cached, str) else None
