"""Calls of a model in the rows of logs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from r3agent.data.conversations import Call, as_message, as_messages, parsed


def langfuse_call(row: dict[str, Any]) -> Call:
    asked, answered = parsed(row.get("input")), parsed(row.get("output"))
    if str(row.get("level")).upper() == "ERROR":
        raise ValueError("the call failed")
    if answered is None:
        raise ValueError("it has no output")
    if isinstance(answered, str):
        answered = {"role": "assistant", "content": answered}
    usage: Any = parsed(first_of(row, "usageDetails", "usage_details", "usage")) or {}
    settings: Any = parsed(first_of(row, "modelParameters", "model_parameters")) or {}
    return Call(
        as_messages(asked),
        _answer(answered),
        tools=_tools(asked),
        model=str(first_of(row, "model", "provided_model_name", "providedModelName") or ""),
        sampling=dict(settings),
        prompt_tokens=_count(usage.get("input")),
        completion_tokens=_count(usage.get("output")),
    )


def langsmith_call(row: dict[str, Any]) -> Call:
    if row.get("error"):
        raise ValueError("the call failed")
    extra: Any = parsed(row.get("extra")) or {}
    settings: Any = extra.get("invocation_params") or {}
    asked, answered = parsed(row.get("inputs")), parsed(row.get("outputs"))
    tools = _tools(asked) or _tools(settings)
    kept = {key: v for key, v in settings.items() if key not in ("tools", "model", "model_name", "messages", "_type")}
    model = settings.get("model") or settings.get("model_name") or (extra.get("metadata") or {}).get("ls_model_name")
    return Call(
        as_messages(asked),
        _answer(answered),
        tools=tools,
        model=str(model or ""),
        sampling=kept,
        prompt_tokens=_count(row.get("prompt_tokens")),
        completion_tokens=_count(row.get("completion_tokens")),
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


def _answer(value: Any) -> dict[str, Any]:
    """Find the assistant message in an output."""
    value = parsed(value)
    if isinstance(value, list) and value:
        return _answer(value[-1])
    if isinstance(value, str):
        return {"role": "assistant", "content": value}
    if not isinstance(value, Mapping):
        raise ValueError("it has no output")
    for key in ("generations", "choices", "messages", "message", "output"):
        if value.get(key):
            return _answer(value[key])
    if isinstance(value.get("text"), str) and "content" not in value:
        return {"role": "assistant", "content": value["text"]}
    return {**as_message({"role": "assistant", **value}), "role": "assistant"}


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
