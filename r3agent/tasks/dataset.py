"""Conversion of data set rows to tasks: a column, or a template over columns, becomes a part of a task.

A task's id is a hash of its messages, so that duplicate rows are in the same split; `id` can name a column
to use instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import orjson
from pydantic import ValidationError

from r3agent._util.messages import did_you_mean, explain
from r3agent._util.templates import compile_template
from r3agent.errors import ConfigError
from r3agent.records.trajectory import Message, Task
from r3agent.tasks.json_values import json_value
from r3agent.tasks.rows import Row, Rows, file_rows, hub_rows
from r3agent.tasks.splits import draw

Part = Callable[[Row], Any]
"""Function from a row to one part of its task."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Settings `task.params` of a data set. Templates are Jinja and use column names, or `row["any column"]`."""

    prompt: str = "prompt"
    """User message: a template, or a column of text or of chat messages."""
    system: str = ""
    """System message: a column, or a template, which may be plain text."""
    answer: str = ""
    """Column for `info["answer"]`; default `answer`, if there is one."""
    gold: str = ""
    """Reply that passes: a template, or a column of text or of an assistant message; default the answer."""
    id: str = ""
    """Column of stable task ids; default a hash of the messages."""
    tools: str = ""
    """Column of tool definitions in OpenAI's format, or of their JSON."""
    info: Sequence[str] | None = None
    """Columns for the verifier; default all that are not named above."""


def from_hub(
    n: int | None,
    *,
    seed: int,
    split: str,
    name: str,
    subset: str | None = None,
    hf_split: str | None = None,
    revision: str | None = None,
    data_files: str | list[str] | None = None,
    **columns: Any,
) -> list[Task]:
    """Return tasks of a hub data set or a local directory; arguments as in `hub_rows` and `Columns`."""
    mapping = _columns(columns, further=("subset", "hf_split", "revision", "data_files"))
    rows = hub_rows(name, subset=subset, hf_split=hf_split, revision=revision, data_files=data_files)
    return draw(tasks_of(rows, mapping, where=f"hf:{name}"), n, seed=seed, split=split)


def from_file(n: int | None, *, seed: int, split: str, name: str, **columns: Any) -> list[Task]:
    """Return tasks of one file; `columns` as in `Columns`."""
    mapping = _columns(columns)
    return draw(tasks_of(file_rows(name), mapping, where=name), n, seed=seed, split=split)


def tasks_of(rows: Rows, columns: Columns, *, where: str) -> Iterator[Task]:
    """Yield one task for each row.

    Raises:
        ConfigError: a column is missing, or a row is not a task; the message has file, row and column.
    """
    known = rows.columns

    def column(key: str, name: str) -> Part:
        if name not in known:
            raise ConfigError(f"task.params.{key}: {where} has no column {name!r}; {did_you_mean(name, known)}")
        return lambda row: json_value(row.values.get(name), f"{row.where}, column {name!r}")

    def template_or_column(key: str, text: str, *, literal: bool) -> Part:
        if text in known or not (literal or "{{" in text or "{%" in text):
            return column(key, text)
        template = compile_template(text, name=f"task.params.{key}", known=[*filter(str.isidentifier, known), "row"])
        used = known if "row" in template.used else template.used

        def render(row: Row) -> str:
            given = {c: json_value(row.values[c], f"{row.where}, column {c!r}") for c in used if c in row.values}
            try:
                return template.render(**{**given, "row": given})
            except ConfigError as error:
                raise ConfigError(f"{row.where}: {error}") from error

        return render

    prompt = template_or_column("prompt", columns.prompt, literal=False)
    system = template_or_column("system", columns.system, literal=True) if columns.system else None
    answer_column = columns.answer or ("answer" if "answer" in known else "")
    answer = column("answer", answer_column) if answer_column else None
    gold = template_or_column("gold", columns.gold, literal=False) if columns.gold else answer
    task_id = column("id", columns.id) if columns.id else None
    tools = column("tools", columns.tools) if columns.tools else None
    taken = {columns.prompt, columns.system, columns.gold, columns.id, columns.tools, answer_column}
    kept = [c for c in known if c not in taken] if columns.info is None else columns.info
    info = {c: column("info", c) for c in kept}
    for row in rows.rows:
        yield _task(
            row,
            messages=[*_system(system, row), *_messages(prompt(row), row)],
            info={c: part(row) for c, part in info.items()},
            answer=None if answer is None else _required(answer(row), answer_column, row),
            gold=None if gold is None else _gold(gold(row)),
            id=None if task_id is None else str(_required(task_id(row), columns.id, row)),
            tools=None if tools is None else _tools(tools(row), row),
        )


def _task(row: Row, *, info: dict[str, Any], answer: Any, **parts: Any) -> Task:
    info = info if answer is None else {**info, "answer": answer}
    try:
        return Task.model_validate({"info": info, **{k: v for k, v in parts.items() if v is not None}})
    except ValidationError as error:
        raise ConfigError(f"{row.where}: not a task: {explain(error, Task)}") from error


def _system(system: Part | None, row: Row) -> list[Message]:
    text = None if system is None else system(row)
    return [{"role": "system", "content": str(text)}] if text else []


def _messages(value: Any, row: Row) -> list[Message]:
    """Convert text to a user message; return chat messages unchanged."""
    if isinstance(value, list) and value and all(isinstance(m, dict) and "role" in m for m in value):
        messages = [{key: part for key, part in m.items() if part is not None} for m in value]
        if messages[-1]["role"] in ("user", "tool"):
            return messages
        raise ConfigError(f"{row.where}: its prompt ends with the {messages[-1]['role']}; it must end with the user")
    if value is None or isinstance(value, list | dict) or not str(value).strip():
        raise ConfigError(f"{row.where}: its prompt is {value!r}; it must be text, or messages with roles")
    return [{"role": "user", "content": str(value)}]


def _required(value: Any, column: str, row: Row) -> Any:
    if value is None:
        raise ConfigError(f"{row.where}, column {column!r} is empty; drop the row, or name another column")
    return value


def _gold(value: Any) -> Message | None:
    if isinstance(value, dict) and "role" in value:
        return {key: part for key, part in value.items() if part is not None}
    return None if value is None else {"role": "assistant", "content": str(value)}


def _tools(value: Any, row: Row) -> list[Any] | None:
    if isinstance(value, str):
        try:
            value = orjson.loads(value) if value.strip() else None
        except orjson.JSONDecodeError as error:
            raise ConfigError(f"{row.where}: its tools are not JSON: {error}") from error
    if value is not None and not isinstance(value, list):
        raise ConfigError(f"{row.where}: its tools are a {type(value).__name__}; they must be a list of definitions")
    return _without_nulls(value)


def _without_nulls(value: Any) -> Any:
    """Drop null fields: a table's rows have the fields of all rows, so fields of other tools are null."""
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def _columns(columns: dict[str, Any], further: Sequence[str] = ()) -> Columns:
    known = [field.name for field in fields(Columns)]
    for key, value in columns.items():
        if key not in known:
            raise ConfigError(f"task.params.{key} is unknown; {did_you_mean(key, [*known, *further])}")
        texts = isinstance(value, list | tuple) and all(isinstance(c, str) for c in value)
        if not (texts if key == "info" else isinstance(value, str)):
            raise ConfigError(
                f"task.params.{key} = {value!r}: must be {'a list of columns' if key == 'info' else 'text'}"
            )
    return Columns(**columns)
