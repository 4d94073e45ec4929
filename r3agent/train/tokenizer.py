"""Policy's own tokenizer and chat template: conversations to ids, and ids to text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from r3agent._util.imports import require_extra
from r3agent.errors import ConfigError, TrainingError
from r3agent.records.media import flat
from r3agent.records.thinking import fill_reasoning_fields
from r3agent.records.trajectory import Message, Span, Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILE = "tokenizer.json"

TokenTexts: TypeAlias = Callable[[Sequence[int]], list[str]]
"""Function from T token ids to T pieces of text; a character of several tokens is in the last one's piece."""


class Retokeniser:
    """Tokeniser of a span's conversation and of its text, with the end-of-turn token unless the span was truncated."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer: Any = tokenizer

    def __call__(self, trajectory: Trajectory, span: Span) -> tuple[list[int], list[int]]:
        """Return prompt ids and completion ids.

        Raises:
            TrainingError: the policy has no chat template, or the template rejects this conversation.
        """
        extra = span.sampling.get("extra") or {}
        options = extra.get("chat_template_kwargs") or {}  # vLLM's, e.g. enable_thinking
        has_tools = span.label != "reflect" or extra.get("tool_choice") == "none"  # as in the graph
        tools = (list(trajectory.task.tools) or None) if has_tools else None
        try:
            prompt = self.tokenizer.apply_chat_template(
                [flat(fill_reasoning_fields(message)) for message in trajectory.prompt(span)],
                **{**options, "tools": tools, "add_generation_prompt": True, "tokenize": False},
            )
        except Exception as error:  # a template may fail in any way
            raise TrainingError(
                f"span {span.span_id} of trajectory {trajectory.trajectory_id}: the policy's chat template does not "
                f"take its conversation ({error}); set retokenise = 'refuse' to leave such spans out"
            ) from error
        completion = self._ids(span.text)
        if span.unfinished != "length" and self.tokenizer.eos_token_id is not None:
            completion.append(self.tokenizer.eos_token_id)
        return self._ids(prompt), completion

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def prompt_tokens(model: str) -> Callable[[Sequence[Message], Sequence[dict[str, Any]]], int]:
    """Make a function that counts the tokens of messages and tools, by the chat template of a local model.

    Args:
        model: directory or hub id; nothing is downloaded.

    The function raises `ValueError` if the template rejects the messages or tools.

    Raises:
        ConfigError: there is no such tokenizer on this machine, or the extra is missing.
    """
    require_extra("transformers", "train")
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(model, local_files_only=True)
    except Exception as error:  # tokenizers raises nothing narrower for a file of a newer version
        raise ConfigError(f"{model}: no tokenizer of it on this machine: {error}") from error

    def count(messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> int:
        try:
            text = tokenizer.apply_chat_template(
                list(messages), tools=list(tools) or None, add_generation_prompt=True, tokenize=False
            )
        except Exception as error:  # a template may fail in any way
            raise ValueError(f"the chat template does not take it: {error}") from error
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return count


def token_texts(model: str) -> TokenTexts:
    """Make a function that decodes token ids with the tokenizer of a local model.

    Args:
        model: directory or hub id; nothing is downloaded.

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
        if max(ids_T, default=0) >= 2**32:  # no model's, and the tokenizer raises
            return [f"{id_} " for id_ in ids_T]
        pieces_T: list[str] = []
        first = end_of_text = 0  # a token's text may depend on the tokens before it: decode it with the last piece
        for end in range(1, len(ids_T) + 1):
            before, now = (tokenizer.decode(ids_T[first:to], skip_special_tokens=False) for to in (end_of_text, end))
            whole = not now.endswith("\N{REPLACEMENT CHARACTER}") or end == len(ids_T)
            pieces_T.append(now[len(before) :] if whole else "")
            if whole:
                first, end_of_text = end_of_text, end
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
