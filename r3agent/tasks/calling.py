"""Function-calling tasks: functions as OpenAI's `tools` or in the system prompt, and the gold answer.

The sources `bfcl` and `xlam` provide the functions and the accepted arguments; the verifier `function_call` reads
`Task.info`, whose fields `r3agent/verifiers/function_call/verdict.py` documents.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from keyword import iskeyword
from typing import Any, Literal, TypeAlias

from r3agent.records.trajectory import Message, Task

Calls: TypeAlias = Literal["native", "text", "bfcl"]
"""Format of functions: `tools` in the request, which the server writes in the words of the model's own chat template
(`native`), or a system prompt that asks for calls in text, in `SYSTEM`'s words (`text`) or BFCL's own (`bfcl`)."""

SYSTEM = """You can call these functions:
{functions}

To call functions, reply with one JSON object for each call, each on its own line: \
{"name": "function_name", "arguments": {"parameter": "value"}}
Make all calls that the request asks for: mostly one, sometimes several. If no function fits the request, or the \
request lacks what the function needs, call none and say so in words."""
"""Wording that `benchmarks/prompts.py` compares with others; the results are in `benchmarks/RESULTS.md`."""

BFCL = """You are an expert in composing functions.You are given a question and a set of possible functions. Based on \
the question, you will need to make one or more function/tool calls to achieve the purpose. If none of the functions \
can be used, point it out. If the given question lacks the parameters required by the function, also point it out.

You should only return the function calls in your response.

If you decide to invoke any of the function(s), you MUST put it in the format of \
[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)].  You SHOULD NOT include \
any other text in the response.

At each turn, you should try your best to complete the tasks requested by the user within the current turn. Continue \
to output functions to call until you have fulfilled the user's request to the best of your ability. Once you have no \
more functions to call, the system will consider the current turn complete and proceed to the next turn or task.

Here is a list of functions in json format that you can invoke.
{functions}
"""
"""Source: the default system prompt of `bfcl_eval.constants.default_prompts`, unchanged."""

JSON_TYPES = {
    "string": "string",
    "integer": "integer",
    "float": "number",
    "boolean": "boolean",
    "array": "array",
    "tuple": "array",
    "dict": "object",
}
"""JSON Schema types by the types in function documents; `any` has none."""


def tool_name(name: str) -> str:
    """Convert a function's name to one that OpenAI's API accepts: letters, digits, `_` and `-`."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", name)


def json_schema(document: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a parameter's document, with the types above at any depth, to JSON Schema."""
    schema = {key: value for key, value in document.items() if key not in ("type", "optional")}
    kind = document.get("type", "any")
    if kind in JSON_TYPES:
        schema = {"type": JSON_TYPES[kind], **schema}
    if kind == "float":
        schema["format"] = "float"  # 2 and 2.0 differ when items of a list are checked
    if isinstance(document.get("properties"), dict):
        schema["properties"] = {name: json_schema(inner) for name, inner in document["properties"].items()}
    if isinstance(document.get("items"), dict):
        schema["items"] = json_schema(document["items"])
    return schema


def function(name: str, description: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Make a function definition for OpenAI's API; `parameters` is a document with `properties`."""
    return {"name": name, "description": description, "parameters": json_schema({**parameters, "type": "dict"})}


def make_task(
    task_id: str,
    messages: Sequence[Message],
    *,
    functions: Sequence[dict[str, Any]],
    info: dict[str, Any],
    calls: Calls,
) -> Task:
    """Make a task that offers the functions in the format `calls`."""
    gold = _gold(info, calls)
    if calls == "native":
        tools = tuple({"type": "function", "function": offered} for offered in functions)
        return Task(id=task_id, messages=tuple(messages), tools=tools, info=info, gold=gold)
    system = _system_prompt(functions, calls)
    first, *rest = messages
    if first["role"] == "system":
        system = f"{system}\n\n{first['content']}"
    else:
        rest = list(messages)
    return Task(id=task_id, messages=({"role": "system", "content": system}, *rest), info=info, gold=gold)


def _system_prompt(functions: Sequence[dict[str, Any]], calls: Calls) -> str:
    if calls == "bfcl":
        return BFCL.replace("{functions}", json.dumps(functions, indent=4))
    return SYSTEM.replace("{functions}", "\n".join(json.dumps(offered, ensure_ascii=False) for offered in functions))


def _gold(info: dict[str, Any], calls: Calls) -> Message | None:
    """Make the expected calls, each parameter with its first accepted value."""
    match info["expect"]:
        case "no_call":
            return {"role": "assistant", "content": "None of the functions fits."}
        case "calls" if all(_passable(call, info["functions"][call["name"]]) for call in info["calls"]):
            signatures = info["functions"]
            made = [{"name": c["name"], "arguments": arguments_of(c, signatures[c["name"]])} for c in info["calls"]]
        case _:
            return None
    if calls != "native":
        return {"role": "assistant", "content": _as_python(made) if calls == "bfcl" else _as_lines(made)}
    written = [{**call, "arguments": json.dumps(call["arguments"], ensure_ascii=False)} for call in made]
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": f"call_{i}", "type": "function", "function": call} for i, call in enumerate(written)],
    }


def _as_lines(made: Sequence[dict[str, Any]]) -> str:
    return "\n".join(json.dumps(call, ensure_ascii=False) for call in made)


def _as_python(made: Sequence[dict[str, Any]]) -> str:
    """Write calls as BFCL asks for; as JSON if a name is none in Python."""
    names = [part for call in made for part in (*call["name"].split("."), *call["arguments"])]
    if not all(name.isidentifier() and not iskeyword(name) for name in names):
        return _as_lines(made)
    arguments = [", ".join(f"{key}={value!r}" for key, value in call["arguments"].items()) for call in made]
    written = (f"{call['name']}({given})" for call, given in zip(made, arguments, strict=True))
    return f"[{', '.join(written)}]"


def _passable(call: dict[str, Any], signature: dict[str, Any]) -> bool:
    """Return True if all accepted parameters are declared, and all required ones are accepted."""
    accepts: dict[str, Sequence[Any]] = call["accepts"]
    return all(name in accepts for name in signature["required"]) and all(
        "" in accepted or (accepted and signature["types"][name]) for name, accepted in accepts.items()
    )


def arguments_of(call: dict[str, Any], signature: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of an accepted call, without undeclared and optional ones."""
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
