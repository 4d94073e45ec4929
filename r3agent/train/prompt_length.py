"""How many tokens a conversation has for a model whose tokenizer is on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from r3agent._util.imports import require_extra
from r3agent.errors import ConfigError
from r3agent.records.trajectory import Message


def prompt_tokens(model: str) -> Callable[[Sequence[Message], Sequence[dict[str, Any]]], int]:
    """Counts messages and tools by the chat template of a model directory or a hub id that was downloaded before.

    The counter raises `ValueError` where the template does not take them.

    Raises:
        ConfigError: there is no such tokenizer on this machine, or the extra is missing.
    """
    require_extra("transformers", "train")
    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{model}: no tokenizer of it on this machine: {error}") from error

    def count(messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> int:
        try:
            text = tokenizer.apply_chat_template(
                list(messages), tools=list(tools) or None, add_generation_prompt=True, tokenize=False
            )
        except (TemplateError, TypeError, KeyError) as error:
            raise ValueError(f"the chat template does not take it: {error}") from error
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return count
