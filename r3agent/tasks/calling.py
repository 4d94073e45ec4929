"""Make function-calling tasks: functions as OpenAI's `tools` or in the system prompt, and the gold answer.

The sources `bfcl` and `xlam` bring the functions and the accepted arguments; the verifier `function_call` reads
`Task.info`, whose fields `r3agent/verifiers/function_call/verdict.py` documents.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

from r3agent.errors import ConfigError
from r3agent.records.trajectory import Message, Task

Calls: TypeAlias = Literal["native", "text"]
"""Functions are offered as `tools` and called by `tool_calls`, or described and called in text."""

SYSTEM = """You can call these functions:
{functions}

If they are needed, reply with nothing but a JSON list of the calls: [{{"name": "...", "arguments": {{...}}}}, ...]. \
If none of them fits, or the request lacks what they need, reply in words."""

JSON_TYPES = {
    "string": "string",
    "integer": "integer",
    "float": "number",
    "boolean": "boolean",
    "array": "array",
    "tuple": "array",
    "dict": "object",
}
"""Types of function documents to those of JSON Schema; `any` is none."""


def check_calls(calls: str) -> None:
    """Check the way in which functions are called.

    Raises:
        ConfigError: it is neither `native` nor `text`.
    """
    if calls not in get_args(Calls):
        raise ConfigError(f"{calls=}: functions are called in one of the ways {', '.join(get_args(Calls))}")


def tool_name(name: str) -> str:
    """A function's name as OpenAI's API admits it: letters, digits, `_` and `-`."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", name)


def json_schema(document: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON Schema of a parameter that is documented with the types above, at any depth."""
    schema = {key: value for key, value in document.items() if key not in ("type", "optional")}
    kind = document.get("type", "any")
    if kind in JSON_TYPES:
        schema = {"type": JSON_TYPES[kind], **schema}
    if kind == "float":
        schema["format"] = "float"  # 2 and 2.0 differ to those who check items of a list
    if isinstance(document.get("properties"), dict):
        schema["properties"] = {name: json_schema(inner) for name, inner in document["properties"].items()}
    if isinstance(document.get("items"), dict):
        schema["items"] = json_schema(document["items"])
    return schema


def function(name: str, description: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A function in the shape of OpenAI's API; `parameters` is a document with `properties`."""
    return {"name": name, "description": description, "parameters": json_schema({**parameters, "type": "dict"})}


def make_task(
    task_id: str,
    messages: Sequence[Message],
    *,
    functions: Sequence[dict[str, Any]],
    info: dict[str, Any],
    calls: Calls,
) -> Task:
    """A task that offers the functions in the way `calls` says."""
    gold = _gold(info, calls)
    if calls == "native":
        tools = tuple({"type": "function", "function": offered} for offered in functions)
        return Task(id=task_id, messages=tuple(messages), tools=tools, info=info, gold=gold)
    system = SYSTEM.format(functions="\n".join(json.dumps(offered, ensure_ascii=False) for offered in functions))
    first, *rest = messages
    if first["role"] == "system":
        system = f"{system}\n\n{first['content']}"
    else:
        rest = list(messages)
    return Task(id=task_id, messages=({"role": "system", "content": system}, *rest), info=info, gold=gold)


def _gold(info: dict[str, Any], calls: Calls) -> Message | None:
    """The expected calls, each with the first of its accepted values."""
    match info["expect"]:
        case "no_call":
            return {"role": "assistant", "content": "None of the functions fits."}
        case "calls" if all(_passable(call, info["functions"][call["name"]]) for call in info["calls"]):
            signatures = info["functions"]
            made = [{"name": c["name"], "arguments": arguments_of(c, signatures[c["name"]])} for c in info["calls"]]
        case _:
            return None
    if calls == "text":
        return {"role": "assistant", "content": json.dumps(made, ensure_ascii=False)}
    written = [{**call, "arguments": json.dumps(call["arguments"], ensure_ascii=False)} for call in made]
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": f"call_{i}", "type": "function", "function": call} for i, call in enumerate(written)],
    }


def _passable(call: dict[str, Any], signature: dict[str, Any]) -> bool:
    """Return True if what is accepted can be given, and what is required is accepted."""
    accepts: dict[str, Sequence[Any]] = call["accepts"]
    return all(name in accepts for name in signature["required"]) and all(
        "" in accepted or (accepted and signature["types"][name]) for name, accepted in accepts.items()
    )


def arguments_of(call: dict[str, Any], signature: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of an accepted call, without those that cannot be given or need not be."""
    types = signature["types"]
    return {
        name: _plain(accepted, types[name])
        for name, accepted in call["accepts"].items()
        if types[name] and (any(value != "" for value in accepted) or name in signature["required"])
    }


def _plain(accepted: Sequence[Any], types: Sequence[str]) -> Any:
    value = next((value for value in accepted if value != ""), "")
    if types[0] == "dict" and isinstance(value, dict):
        return _plain_dict(value)
    if [*types[1:]] == ["dict"] and isinstance(value, list):
        return [_plain_dict(item) for item in value]
    return value


def _plain_dict(accepted: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    chosen = {key: next((value for value in values if value != ""), "") for key, values in accepted.items()}
    return {key: value for key, value in chosen.items() if value != "" or "" not in accepted[key]}
