"""Calls of a model in the rows of logs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from r3agent.data.conversations import Call, as_message, as_messages, parsed

ENVELOPES = ("generations", "choices", "messages")
"""Keys of lists, in an output, of which the last item has the answer."""

OF_MESSAGE = frozenset(
    {
        *("type", "content", "name", "id", "tool_calls", "function_call", "refusal", "reasoning", "reasoning_content"),
        *("additional_kwargs", "response_metadata", "usage_metadata", "invalid_tool_calls", "example", "annotations"),
        *("audio", "lc", "kwargs", "data"),
    }
)
"""Keys of an assistant message without a role."""

OF_GENERATION = frozenset({"text", "generation_info", "type", "index", "logprobs", "finish_reason"})
"""Keys of a generation of LangChain, or of a choice of OpenAI's completions, whose text is the answer."""


def langfuse_call(row: dict[str, Any]) -> Call:
    asked = parsed(row.get("input"))
    if str(row.get("level")).upper() == "ERROR":
        raise ValueError("the call failed")
    reply, is_exact = _answer(row.get("output"))
    usage: Any = parsed(first_of(row, "usageDetails", "usage_details", "usage")) or {}
    settings: Any = parsed(first_of(row, "modelParameters", "model_parameters")) or {}
    return Call(
        as_messages(asked),
        reply,
        tools=_tools(asked),
        model=str(first_of(row, "model", "provided_model_name", "providedModelName") or ""),
        sampling=dict(settings),
        prompt_tokens=_count(usage.get("input")),
        completion_tokens=_count(usage.get("output")),
        is_exact=is_exact,
    )


def langsmith_call(row: dict[str, Any]) -> Call:
    if row.get("error"):
        raise ValueError("the call failed")
    extra: Any = parsed(row.get("extra")) or {}
    settings: Any = extra.get("invocation_params") or {}
    asked, (reply, is_exact) = parsed(row.get("inputs")), _answer(parsed(row.get("outputs")))
    tools = _tools(asked) or _tools(settings)
    kept = {key: v for key, v in settings.items() if key not in ("tools", "model", "model_name", "messages", "_type")}
    model = settings.get("model") or settings.get("model_name") or (extra.get("metadata") or {}).get("ls_model_name")
    return Call(
        as_messages(asked),
        reply,
        tools=tools,
        model=str(model or ""),
        sampling=kept,
        prompt_tokens=_count(row.get("prompt_tokens")),
        completion_tokens=_count(row.get("completion_tokens")),
        is_exact=is_exact,
    )


def openai_calls(request: Mapping[str, Any], response: Mapping[str, Any]) -> list[Call]:
    if not request.get("messages"):
        raise ValueError("its request is missing; give the file of the requests too")
    usage: Any = response.get("usage") or {}
    details: Any = usage.get("completion_tokens_details") or {}
    choices: Any = response["choices"]
    known = ("messages", "tools", "model", "metadata", "user", "store", "stream", "choices", "id", "object", "usage")
    fields: dict[str, Any] = {
        "tools": request.get("tools") or [],
        "model": str(response.get("model") or request.get("model") or ""),
        "sampling": {key: v for key, v in request.items() if key not in known} if request is not response else {},
        "prompt_tokens": _count(usage.get("prompt_tokens")),
        "completion_tokens": _count(usage.get("completion_tokens")) if len(choices) == 1 else None,
        "reasoning_tokens": _count(details.get("reasoning_tokens")),
    }
    messages = as_messages(request["messages"])
    return [
        Call(
            messages,
            as_message({"role": "assistant", **choice["message"]}),
            finish_reason=choice.get("finish_reason"),
            **fields,
        )
        for choice in choices
    ]


def _answer(value: Any) -> tuple[dict[str, Any], bool]:
    """Find the assistant message in an output.

    An output without one is the answer itself, such as the JSON that was asked for, as text or parsed.

    Returns:
        the message, and False if its text was made of what the log has parsed.
    """
    data = parsed(value)
    if data is None:
        raise ValueError("it has no output")
    if isinstance(data, str):
        return _said(data), True
    if isinstance(data, Mapping):
        if isinstance(data.get("text"), str) and data.keys() <= OF_GENERATION:
            return _said(data["text"]), True
        if _is_message(data):
            return {**as_message({"role": "assistant", **data}), "role": "assistant"}, True
    if (inner := _inside(data)) is not None:
        return _answer(inner)
    if isinstance(value, str):
        return _said(value), True
    if isinstance(data, Mapping) and len(data) == 1 and "output" in data:
        return _answer(data["output"])
    return _said(json.dumps(data, ensure_ascii=False)), False


def _said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def _inside(data: Any) -> Any:
    """Return the part of an output that has the message; `None` if it is no form of a log."""
    if isinstance(data, list):
        return data[-1] if data and _is_known(data[-1]) else None
    if not isinstance(data, Mapping):
        return None
    for key in ENVELOPES:
        if isinstance(found := data.get(key), list) and (not found or _is_known(found[-1])):
            return found or ""
    return next((data[key] for key in ("message", "output") if _is_known(data.get(key))), None)


def _is_known(data: Any) -> bool:
    """Return True for a message in the form of a log, and for what has one."""
    is_generation = isinstance(data, Mapping) and isinstance(data.get("text"), str) and data.keys() <= OF_GENERATION
    return is_generation or (isinstance(data, Mapping) and _is_message(data)) or _inside(data) is not None


def _is_message(data: Mapping[str, Any]) -> bool:
    has_content = "content" in data or {"type", "data"} <= data.keys()  # the latter of LangChain's `message_to_dict`
    return isinstance(data.get("role"), str) or (has_content and data.keys() <= OF_MESSAGE) or "lc" in data


def _tools(asked: Any) -> list[dict[str, Any]]:
    found = parsed(asked.get("tools")) if isinstance(asked, Mapping) else None
    return [tool for tool in found if isinstance(tool, dict)] if isinstance(found, list) else []


def body_of(value: Any) -> Any:
    value = parsed(value)
    return value["body"] if isinstance(value, Mapping) and isinstance(value.get("body"), Mapping) else value


def first_of(row: Mapping[str, Any], *keys: str) -> Any:
    return next((row[key] for key in keys if row.get(key) is not None), None)


def _count(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
