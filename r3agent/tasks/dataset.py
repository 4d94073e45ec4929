"""Conversion of rows to tasks: those of files, directories and hub data sets, in any columns.

A task's id is a hash of its messages, so that duplicate rows are in the same split; `id` can name a column
to use instead. A row of a file may also be a whole `Task`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from r3agent._util.messages import explain, shorten
from r3agent.errors import ConfigError
from r3agent.records.trajectory import Message, Task
from r3agent.tasks.columns import Columns, Table, cells, is_template
from r3agent.tasks.hub import hub_rows
from r3agent.tasks.json_values import exact_json
from r3agent.tasks.rows import Rows, file_rows
from r3agent.tasks.splits import draw
from r3agent.tasks.text_files import Row, ending

SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
"""Roles by the names that ShareGPT's format gives them; all others keep theirs."""

ROLES = ("system", "developer", "user", "assistant", "tool", "function")

FORMS = (
    'a row is {"prompt": "...", "answer": ...} or {"id": "...", "messages": [...], "info": {...}}; map other columns '
    "with task.params"
)

PROMPTS = ("messages", "prompt", "question", "problem", "instruction", "query")
"""Columns that hold the prompt in common data sets."""

_WRITTEN = re.compile(r"""\s*\[\s*\{[^{}]*['"](?:role|from)['"]\s*:""")
_GSM8K = re.compile(r"(?:\A|\s)####[ \t]*(\S[^\n]*?)\s*\Z")


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
    encoding: str = "",
    delimiter: str = "",
    **columns: Any,
) -> list[Task]:
    """Return tasks of a hub data set or a local directory; arguments as in `hub_rows` and `Columns`."""
    further = ("subset", "hf_split", "revision", "data_files", "encoding", "delimiter")
    mapping = Columns.of(columns, further=further)
    rows = hub_rows(
        name,
        subset=subset,
        hf_split=hf_split,
        revision=revision,
        data_files=data_files,
        encoding=encoding,
        delimiter=delimiter,
    )
    return draw(tasks_of(rows, mapping, where=f"hf:{name}"), n, seed=seed, split=split)


def from_file(
    n: int | None, *, seed: int, split: str, name: str, encoding: str = "", delimiter: str = "", **columns: Any
) -> list[Task]:
    """Return tasks of one file; `columns` as in `Columns`, the others as in `file_rows`.

    Without `columns`, a row may be a whole task, and the `id` of JSON lines is the task's.
    """
    mapping = Columns.of(columns, further=("encoding", "delimiter"))
    rows = file_rows(name, encoding=encoding, delimiter=delimiter)
    if not columns and "id" in rows.columns and ending(name) in (".jsonl", ".ndjson"):
        mapping = Columns(id="id")
    return draw(tasks_of(rows, mapping, where=name, own=not columns), n, seed=seed, split=split)


def tasks_of(rows: Rows, columns: Columns, *, where: str, own: bool = False) -> Iterator[Task]:
    """Yield one task for each row.

    Args:
        own: also read rows that are whole tasks, and rows without an answer or an id where others have one.

    Raises:
        ConfigError: a column is missing, or a row is not a task; the message has file, row and column.
    """
    if not rows.columns:
        return
    table = Table(rows.columns, where)
    own_messages = own and "messages" in rows.columns
    prompt = None if own_messages and "prompt" not in rows.columns else table.part("prompt", columns.prompt)
    system = table.part("system", columns.system, template="literal") if columns.system else None
    answer_place = columns.answer or table.default_answer()
    answer = table.part("answer", answer_place) if answer_place else None
    gold = table.part("gold", columns.gold) if columns.gold else None
    task_id = table.part("id", columns.id) if columns.id else None
    tools = table.part("tools", columns.tools, template="no") if columns.tools else None
    for column in columns.info or ():
        table.part("info", column, template="no")
    taken = {columns.prompt, columns.system, columns.gold, columns.id, columns.tools, answer_place}
    kept = table.default_info(taken) if columns.info is None else columns.info
    for row in rows.rows:
        if prompt is None or (own_messages and row.values.get("prompt") is None):
            yield _whole(row)
            continue
        info = cells(row, kept, strict=columns.info is not None)
        is_answered = answer and not (own and answer_place.partition(".")[0] not in row.values)
        found = _required(answer(row), answer_place, row) if answer and is_answered else None
        if not is_template(answer_place):
            found = _answer(found)
        passing = _gold(gold(row)) if gold else _gold_of(found)
        named = task_id and task_id(row)
        yield _task(
            row,
            messages=[*_system(system and system(row)), *_messages(prompt(row), row, passing, columns.prompt)],
            info={**info, "answer": found} if is_answered else info,
            gold=passing,
            id=str(_required(named, columns.id, row)) if task_id and not (own and named is None) else None,
            tools=tools and _tools(tools(row), row),
        )


def _whole(row: Row) -> Task:
    """Make the task of a row that is one."""
    given = {key: exact_json(value, f"{row.where}, column {key!r}") for key, value in row.values.items()}
    given = {key: value for key, value in given.items() if value is not None}
    if isinstance(messages := given.get("messages"), list) and messages:
        given["messages"] = _messages(messages, row, None)
    if "id" in given:
        given["id"] = str(given["id"])
    return _task(row, **given)


def _task(row: Row, **parts: Any) -> Task:
    try:
        return Task.model_validate({k: v for k, v in parts.items() if v is not None})
    except ValidationError as error:
        raise ConfigError(f"{row.where}: not a task: {explain(error, Task)}; {FORMS}{_example(row)}") from error


def _example(row: Row) -> str:
    """Return an example of a setting that names a column of the row for the prompt; empty if none looks like one."""
    column = next((name for name in PROMPTS if row.values.get(name)), "")
    return f", e.g. --set task.params.prompt={column}" if column else ""


def _system(text: Any) -> list[Message]:
    return [{"role": "system", "content": str(text)}] if text else []


def _messages(value: Any, row: Row, gold: Message | None, place: str = "messages") -> list[Message]:
    """Convert text to a user message, and chat messages to those of OpenAI's API, without the gold reply at the end.

    Args:
        place: column of the messages, for the message.

    Raises:
        ConfigError: it is neither, or does not end with the user.
    """
    if isinstance(value, str) and _WRITTEN.match(value):
        try:
            value = json.loads(value)
        except ValueError:
            raise ConfigError(
                f"{row.where}: its prompt {shorten(value)} is messages in Python's notation; write JSON or Parquet"
            ) from None
    if isinstance(value, dict) and value.keys() & {"role", "from"}:
        value = [value]
    if not isinstance(value, list):
        if value is None or isinstance(value, dict) or not str(value).strip():
            raise ConfigError(f"{row.where}: its prompt is {shorten(value)}; it must be text, or messages with roles")
        return [{"role": "user", "content": str(value)}]
    if not value or not all(isinstance(m, dict) for m in value):
        raise ConfigError(f"{row.where}: its prompt is {shorten(value)}; it must be text, or messages with roles")
    messages = [_message(message, row) for message in value]
    if messages[-1]["role"] == "assistant" and gold and messages[-1].get("content") == gold.get("content"):
        messages.pop()
    last = messages[-1]["role"] if messages else "assistant"
    if last in ("user", "tool", "function"):
        return messages
    reply = f"{place}[-1].{'value' if 'from' in value[-1] else 'content'}"
    named = f", or name it as the answer: --set task.params.prompt={place} --set task.params.answer={reply}"
    raise ConfigError(
        f"{row.where}: its prompt ends with the {last}; it must be text, or messages with roles, and must end with the "
        f"user; drop what the policy would see of the reply{named if last == 'assistant' else ''}"
    )


def _message(value: Any, row: Row) -> Message:
    """Convert a message in OpenAI's or ShareGPT's format."""
    if isinstance(value, dict) and "from" in value and "role" not in value:
        value = {"role": SHAREGPT_ROLES.get(value["from"], value["from"]), "content": value.get("value")}
    if not isinstance(value, dict) or value.get("role") not in ROLES:
        raise ConfigError(f"{row.where}: messages: {shorten(value)} has no role, such as user")
    if value["role"] == "user" and not value.get("content"):
        raise ConfigError(f"{row.where}: messages: {shorten(value)} has no content")
    return {key: _without_nulls(part) for key, part in value.items() if part is not None or key == "content"}


def _required(value: Any, place: str, row: Row) -> Any:
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        raise ConfigError(f"{row.where}, column {place!r} is empty; drop the row, or name another column")
    return value


def _answer(value: Any) -> Any:
    """Return the answer in a value: the text of a reply, or the result that a solution in GSM8K's format ends with."""
    turns = value if isinstance(value, list) else [value]
    if isinstance(turns[-1], dict) and "role" in turns[-1]:
        value = turns[-1].get("content")
    elif isinstance(value, list) and all(isinstance(accepted, str) for accepted in value):
        return [_answer(accepted) for accepted in value]
    result = _GSM8K.search(value) if isinstance(value, str) else None
    return result[1] if result else value


def _gold(value: Any) -> Message | None:
    """Make the gold reply of a column: of messages, the last."""
    if isinstance(value, list) and value and isinstance(value[-1], dict) and "role" in value[-1]:
        value = value[-1]
    if isinstance(value, dict) and "role" in value:
        return {key: part for key, part in value.items() if part is not None}
    return _gold_of(value)


def _gold_of(answer: Any) -> Message | None:
    """Make the gold reply of an answer: of several accepted ones, the first."""
    if isinstance(answer, list) and answer and not isinstance(answer[0], list | dict):
        answer = answer[0]
    if answer is None:
        return None
    return {"role": "assistant", "content": json.dumps(answer) if isinstance(answer, list | dict) else str(answer)}


def _tools(value: Any, row: Row) -> list[Any] | None:
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError as error:
            raise ConfigError(f"{row.where}: its tools are not JSON: {error}") from error
    if value is not None and not isinstance(value, list):
        raise ConfigError(f"{row.where}: its tools are a {type(value).__name__}; they must be a list of definitions")
    return _without_nulls(value)


def _without_nulls(value: Any) -> Any:
    """Drop null fields: a table's rows have the fields of all rows, so fields of other tools are null."""
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value
