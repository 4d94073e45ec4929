"""Function-calling problems in the format of APIGen (xLAM-60k), which the paper trains on: `xlam:FILE`.

A row of JSON or Parquet has `query`, `tools` and `answers`, the last two as JSON or as text that contains JSON, and
optionally an `id`. Parameters have Python types (`List[int], optional`), or are a JSON Schema, and tools and calls may
have the shape of OpenAI's API. The answer's calls are accepted in any order. A value that equals the parameter's
documented default may be left out, and if the answer leaves a parameter out, its default may be given. So may an empty
text, because accepted values mark optional parameters with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from pydantic import BaseModel, field_validator, model_validator

from r3agent._util.messages import explain
from r3agent.errors import ConfigError
from r3agent.records.trajectory import Task
from r3agent.tasks.calling import Calls, function, make_task, tool_name
from r3agent.tasks.rows import file_rows
from r3agent.tasks.splits import draw
from r3agent.tasks.text_files import ending

KINDS = {
    "str": "string",
    "int": "integer",
    "float": "float",
    "bool": "boolean",
    "list": "array",
    "set": "array",
    "tuple": "tuple",
    "dict": "dict",
    "string": "string",
    "integer": "integer",
    "number": "float",
    "boolean": "boolean",
    "array": "array",
    "object": "dict",
}
"""Types in function documents by the type in Python or in JSON Schema; all others are `any`."""


class Tool(BaseModel):
    """Function definition of a row."""

    name: str
    description: str = ""
    parameters: dict[str, dict[str, Any]] = {}
    json_schema: dict[str, Any] | None = None
    """JSON Schema of the parameters, if the row has one."""

    @model_validator(mode="before")
    @classmethod
    def _of_any_shape(cls, data: Any) -> Any:
        data = _unwrapped(data)
        schema = data.get("parameters")
        if isinstance(schema, dict) and schema.get("type") in ("object", "dict"):
            data = {**data, "json_schema": schema, "parameters": schema.get("properties")}
        return {key: value for key, value in data.items() if value is not None}


class ExpectedCall(BaseModel):
    """Call in the row's answer."""

    name: str
    arguments: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _of_any_shape(cls, data: Any) -> Any:
        data = _unwrapped(data)
        return {**data, "arguments": _parsed(data.get("arguments")) or {}}


class XlamRow(BaseModel):
    """One row of the file."""

    id: int | str | None = None
    query: str
    tools: list[Tool]
    answers: list[ExpectedCall]

    @field_validator("tools", "answers", mode="before")
    @classmethod
    def _of_text(cls, value: Any) -> Any:
        value = _parsed(value)
        return [value] if isinstance(value, dict) else value


def _unwrapped(data: Any) -> dict[str, Any]:
    """Return a tool or call without the wrapper of OpenAI's API."""
    inner = data.get("function", data) if isinstance(data, dict) else data
    if not isinstance(inner, dict):
        raise ValueError("must be an object with a name")
    return inner


def _parsed(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) and value.strip() else value


def load(n: int | None, *, seed: int, split: str, name: str, calls: Calls = "native", encoding: str = "") -> list[Task]:
    """Return tasks of the file `name`.

    Args:
        calls: as in the source `bfcl`.
        encoding: encoding of the file; default UTF-8, or what its byte order mark says.

    Raises:
        ConfigError: the file is missing, a row is not in the format, or two different rows have the same id.
    """
    return draw(_tasks(name, calls, encoding), n, seed=seed, split=split)


def _tasks(path: str, calls: Calls, encoding: str) -> Iterator[Task]:
    is_table = ending(path) == ".parquet"
    for row in file_rows(path, encoding=encoding).rows:
        try:
            values = _plain(row.values, drop_nulls=is_table)
            yield _task(XlamRow.model_validate(values), row.number, calls)
        except ValueError as error:  # from pydantic and json too
            raise ConfigError(
                f'{row.where}: not in the format of APIGen: {explain(error, XlamRow)}; a row is {{"query": "...", '
                '"tools": [...], "answers": [{"name": ..., "arguments": {...}}]}'
            ) from error


def _plain(value: Any, *, drop_nulls: bool) -> Any:
    """Return decimals as floats, and a table's rows without the fields of other rows, which are null in them."""
    if isinstance(value, dict):
        return {
            key: _plain(part, drop_nulls=drop_nulls)
            for key, part in value.items()
            if part is not None or not drop_nulls
        }
    if isinstance(value, list):
        return [_plain(part, drop_nulls=drop_nulls) for part in value]
    return float(value) if isinstance(value, Decimal) else value


def _task(row: XlamRow, number: int, calls: Calls) -> Task:
    tools = {tool_name(tool.name) if calls == "native" else tool.name: tool for tool in row.tools}
    expected: list[dict[str, Any]] = []
    signed: dict[str, Any] = {}
    for answer in row.answers:
        name = tool_name(answer.name) if calls == "native" else answer.name
        if name not in tools:
            raise ValueError(f"the answer calls {answer.name!r}, which is none of the tools")
        if unknown := answer.arguments.keys() - tools[name].parameters:
            raise ValueError(f"the answer gives {answer.name!r} {sorted(unknown)}, which it does not take")
        expected.append({"name": name, "accepts": _accepts(tools[name], answer)})
        types = {key: _types(document) for key, document in tools[name].parameters.items()}
        signed[name] = {"required": [], "types": types}  # `accepts` determines the required ones
    return make_task(
        f"xlam:{number if row.id is None else row.id}",
        [{"role": "user", "content": row.query}],
        functions=[_function(name, tool) for name, tool in tools.items()],
        info={"expect": "calls" if expected else "no_call", "calls": expected, "functions": signed},
        calls=calls,
    )


def _accepts(tool: Tool, answer: ExpectedCall) -> dict[str, list[Any]]:
    """Return each parameter's accepted values, with `""` if it is optional."""
    accepted: dict[str, list[Any]] = {}
    for key, document in tool.parameters.items():
        has_default = "default" in document
        if key in answer.arguments:
            value = answer.arguments[key]
            left_out = [""] if has_default and document["default"] == value else []
            accepted[key] = [_choices(value, _types(document)), *left_out]
        elif has_default:
            accepted[key] = [_choices(document["default"], _types(document)), ""]
    return accepted


def _choices(value: Any, types: list[str]) -> Any:
    """Convert a dict to the verifier's format, with the list of accepted values of each key."""
    if types[0] == "dict" and isinstance(value, dict):
        return {key: [inner] for key, inner in value.items()}
    return value


def _types(document: dict[str, Any]) -> list[str]:
    return [_document_of(document)["type"]]


def _document_of(document: dict[str, Any]) -> dict[str, Any]:
    """Convert a parameter's document to the types of `calling.py`."""
    outer, inner = _declared(document)
    if isinstance(listed := document.get("items"), dict):
        inner = _declared(listed)[0]
    kind, items = KINDS.get(outer, "any"), KINDS.get(inner, "any")
    described = {key: value for key, value in document.items() if key not in ("type", "required")}
    return {"type": kind, **described} | ({"items": {"type": items}} if kind in ("array", "tuple") else {})


def _declared(document: dict[str, Any]) -> tuple[str, str]:
    """Return a parameter's type and the type of its items, in Python's or JSON Schema's names."""
    declared: Any = document.get("type", "")
    if isinstance(declared, list):  # such as ["string", "null"]
        declared = next((name for name in declared if name != "null"), "")
    declared = re.sub(r",\s*optional$|^Optional\[(.*)\]$", r"\1", str(declared).strip())
    outer, _, inner = declared.partition("[")
    return outer.strip().lower(), inner.partition("[")[0].strip(" ]").lower()


def _function(name: str, tool: Tool) -> dict[str, Any]:
    """Make the function definition for OpenAI's API."""
    if tool.json_schema is not None:
        return {"name": name, "description": tool.description, "parameters": {**tool.json_schema, "type": "object"}}
    return function(name, tool.description, _document(tool))


def _document(tool: Tool) -> dict[str, Any]:
    required = [
        name
        for name, document in tool.parameters.items()
        if "default" not in document and "optional" not in str(document.get("type", "")).lower()
    ]
    return {"properties": {name: _document_of(d) for name, d in tool.parameters.items()}, "required": required}
