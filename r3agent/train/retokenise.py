"""Tokens for spans that were recorded as text only: the policy's own chat template and tokenizer, applied again."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from r3agent.errors import TrainingError
from r3agent.records.thinking import fill_reasoning_fields
from r3agent.records.trajectory import Span, Trajectory


class Retokeniser:
    """Tokenises the conversation that a span answered, and its text with the end-of-turn token if it ended."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer: Any = tokenizer

    def __call__(self, trajectory: Trajectory, span: Span) -> tuple[list[int], list[int]]:
        """Prompt ids and completion ids.

        Raises:
            TrainingError: the policy has no chat template, or it does not take this conversation.
        """
        asked = (span.sampling.get("extra") or {}).get("chat_template_kwargs") or {}  # vLLM's, e.g. enable_thinking
        tools = None if span.label == "reflect" else list(trajectory.task.tools) or None  # as the graph offers them
        try:
            prompt = self.tokenizer.apply_chat_template(
                [fill_reasoning_fields(message) for message in trajectory.prompt(span)],
                **{**asked, "tools": tools, "add_generation_prompt": True, "tokenize": False},
            )
        except (ValueError, TemplateError) as error:
            raise TrainingError(
                f"span {span.span_id} of trajectory {trajectory.trajectory_id}: the policy's chat template does not "
                f"take its conversation ({error}); set retokenise = 'refuse' to leave such spans out"
            ) from error
        completion = self._ids(span.text)
        if span.finish_reason != "length" and self.tokenizer.eos_token_id is not None:
            completion.append(self.tokenizer.eos_token_id)
        return self._ids(prompt), completion

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]
