"""Function-calling problems in the format of APIGen (xLAM-60k), which the paper trains on: `xlam:FILE.jsonl`.

A line has `query`, `tools` and `answers`, the last two as JSON or as text that contains JSON, and optionally an `id`.
Parameters have Python types (`List[int], optional`). The answer's calls are accepted in any order. A value that equals
the parameter's documented default may be left out, and if the answer leaves a parameter out, its default may be given.
So may an empty text, because accepted values mark optional parameters with it.
The data set's original file, one JSON list, is supported too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, Json, TypeAdapter

from r3agent.errors import ConfigError
from r3agent.records.trajectory import Task
from r3agent.tasks.calling import Calls, function, make_task, tool_name
from r3agent.tasks.splits import draw

KINDS = {
    "str": "string",
    "int": "integer",
    "float": "float",
    "bool": "boolean",
    "list": "array",
    "set": "array",
    "tuple": "tuple",
    "dict": "dict",
}
"""Types in function documents by Python type; all others are `any`."""


class Tool(BaseModel):
    """Function definition of a row."""

    name: str
    description: str = ""
    parameters: dict[str, dict[str, Any]] = {}


class ExpectedCall(BaseModel):
    """Call in the row's answer."""

    name: str
    arguments: dict[str, Any] = {}


class XlamRow(BaseModel):
    """One line of the file."""

    id: int | str | None = None
    query: str
    tools: list[Tool] | Json[list[Tool]]
    answers: list[ExpectedCall] | Json[list[ExpectedCall]]


_ROW = TypeAdapter(XlamRow)


def load(n: int | None, *, seed: int, split: str, name: str, calls: Calls = "native") -> list[Task]:
    """Return tasks of the file `name`.

    Args:
        calls: as in the source `bfcl`.

    Raises:
        ConfigError: the file is missing, a line is not in the format, or two different lines have the same id.
    """
    return draw(_tasks(name, calls), n, seed=seed, split=split)


def _tasks(path: str, calls: Calls) -> Iterator[Task]:
    for number, line in _lines(path):
        try:
            row = _ROW.validate_json(line) if isinstance(line, bytes) else _ROW.validate_python(line)
            yield _task(row, number, calls)
        except ValueError as error:  # from pydantic too
            raise ConfigError(
                f'{path}:{number}: not in the format of APIGen: {error}; a line is {{"query": "...", "tools": [...], '
                '"answers": [{"name": ..., "arguments": {...}}]}'
            ) from error


def _lines(path: str) -> Iterator[tuple[int, Any]]:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"task file {path}: {error.strerror}; name a file of JSON lines after xlam:") from error
    if content.lstrip().startswith(b"["):
        try:
            yield from enumerate(orjson.loads(content), start=1)
        except orjson.JSONDecodeError as error:
            raise ConfigError(f"{path}: neither JSON lines nor one JSON list: {error}") from error
        return
    yield from ((number, line) for number, line in enumerate(content.splitlines(), start=1) if line.strip())


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
        functions=[function(name, tool.description, _document(tool)) for name, tool in tools.items()],
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
    declared = re.sub(r",\s*optional$|^Optional\[(.*)\]$", r"\1", str(document.get("type", "")).strip())
    outer, _, inner = declared.partition("[")
    kind = KINDS.get(outer.strip().lower(), "any")
    described = {key: value for key, value in document.items() if key not in ("type", "required")}
    items = KINDS.get(inner.partition("[")[0].strip(" ]").lower(), "any")
    return {"type": kind, **described} | ({"items": {"type": items}} if kind in ("array", "tuple") else {})


def _document(tool: Tool) -> dict[str, Any]:
    required = [
        name
        for name, document in tool.parameters.items()
        if "default" not in document and "optional" not in str(document.get("type", "")).lower()
    ]
    return {"properties": {name: _document_of(d) for name, d in tool.parameters.items()}, "required": required}
