"""Conversion of prompts to token ids; chat messages use the model's own chat template."""

from __future__ import annotations

from typing import Any

import orjson
from jinja2 import TemplateError

from r3agent.records.thinking import fill_reasoning_fields
from r3agent.serve.engine.model import ServedModel
from r3agent.serve.errors import APIError
from r3agent.serve.http.protocol import ChatCompletionRequest, CompletionRequest


def chat_prompt(served: ServedModel, request: ChatCompletionRequest) -> list[int]:
    """Render the messages with the model's chat template and tokenise the text.

    Raises:
        APIError: the template cannot render the request, or the prompt leaves no room for an answer.
    """
    template = served.tokenizer.chat_template
    if template is None:
        raise APIError(f"model {served.name} has no chat template; use /v1/completions", param="messages")
    tools = request.tools if request.offers_tools else None
    if tools and "tools" not in str(template):
        raise APIError(f"the chat template of model {served.name} has no place for tools", param="tools")
    if "chat_template" in request.chat_template_kwargs:
        raise APIError("chat_template_kwargs.chat_template: the model's own template is used", param="chat_template")
    messages = [_plain_message(i, fill_reasoning_fields(message)) for i, message in enumerate(request.messages)]
    try:
        text = served.tokenizer.apply_chat_template(
            messages,
            tools=tools,
            tokenize=False,
            add_generation_prompt=request.add_generation_prompt and not request.continue_final_message,
            continue_final_message=request.continue_final_message,
            **request.chat_template_kwargs,
        )
    except (TemplateError, ValueError, TypeError, KeyError) as error:
        raise APIError(f"the chat template refuses the messages: {error}", param="messages") from error
    return _check_length(served, served.tokenizer(text, add_special_tokens=False)["input_ids"], "messages")


def completion_prompt(served: ServedModel, request: CompletionRequest) -> list[int]:
    """Tokenise a text prompt, or check a prompt of token ids.

    Raises:
        APIError: a token id is not in the vocabulary, or the prompt leaves no room for an answer.
    """
    if isinstance(request.prompt, str):
        ids = served.tokenizer(request.prompt, add_special_tokens=request.add_special_tokens)["input_ids"]
    else:
        ids = request.prompt
        size = served.model.get_input_embeddings().num_embeddings
        if (largest := max(ids)) >= size:
            raise APIError(f"prompt: token id {largest} is out of the vocabulary of {size}", param="prompt")
    return _check_length(served, ids, "prompt")


def _check_length(served: ServedModel, ids: list[int], param: str) -> list[int]:
    if not ids:
        raise APIError("the prompt is empty: not a single token", param=param)
    if len(ids) >= served.max_model_len:
        raise APIError(
            f"This model's maximum context length is {served.max_model_len} tokens. However, your prompt contains "
            f"{len(ids)} tokens, which leaves no room for an answer. Please reduce the length of the prompt.",
            param=param,
        )
    return ids


def _plain_message(index: int, message: dict[str, Any]) -> dict[str, Any]:
    """Convert a message to the form that templates expect: plain text, and tool arguments as objects."""
    if not isinstance(message.get("role"), str):
        raise APIError(f"messages.{index}.role: every message needs one", param="messages")
    content = message.get("content")
    if content is not None and not isinstance(content, str):
        message = {**message, "content": _text(index, content)}
    if message.get("tool_calls"):
        message = {**message, "tool_calls": [_tool_call(index, call) for call in message["tool_calls"]]}
    return message


def _text(index: int, parts: Any) -> str:
    if not isinstance(parts, list) or not all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in parts):
        raise APIError(f"messages.{index}.content: only text is understood", param="messages")
    return "\n".join(part["text"] for part in parts)


def _tool_call(index: int, call: Any) -> dict[str, Any]:
    try:
        function = dict(call["function"])
        if isinstance(function.get("arguments"), str):
            function["arguments"] = orjson.loads(function["arguments"] or "{}")
    except (KeyError, TypeError, ValueError) as error:
        raise APIError(f"messages.{index}.tool_calls: {error}", param="messages") from error
    return {**call, "function": function}
