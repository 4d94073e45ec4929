"""Tasks from a JSON Lines file in r3agent's own format, which needs no other package.

Each line is a `Task`, or `{"prompt": "...", "answer": ...}` with other fields for the verifier; the answer is then the
gold answer. `dataset.py` reads files with other columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from r3agent._util.messages import explain, shorten
from r3agent.errors import ConfigError
from r3agent.records.trajectory import Task


def load_jsonl(path: str | Path) -> Iterator[Task]:
    """Yield the tasks of a file.

    Raises:
        ConfigError: the file is missing, or a line is not a task.
    """
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"task file {path}: {error.strerror}; name a file of JSON lines with --task") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            task = _task(orjson.loads(line))
        except ValueError as error:  # from orjson and pydantic too
            fault = f"no JSON ({error})" if isinstance(error, orjson.JSONDecodeError) else explain(error, Task)
            raise ConfigError(
                f'{path}:{number}: not a task: {fault}; a line is {{"prompt": "...", "answer": ...}} '
                'or {"id": "...", "messages": [...], "info": {...}}; map other columns with task.params, e.g. '
                "--set task.params.prompt=question"
            ) from error
        yield task


def _task(data: Any) -> Task:
    if not isinstance(data, dict):
        raise ValueError(f"{shorten(data)} is no object")
    if "prompt" not in data:
        task = Task.model_validate(data)
        if faulty := [message for message in task.messages if not isinstance(message.get("role"), str)]:
            raise ValueError(f"messages: {shorten(faulty[0])} has no role, such as user")
        return task
    prompt, task_id = data.pop("prompt"), data.pop("id", None)
    if not isinstance(prompt, str):
        raise ValueError(f"prompt is a {type(prompt).__name__}, not text")
    named = {} if task_id is None else {"id": str(task_id)}
    gold = None if (answer := data.get("answer")) is None else {"role": "assistant", "content": str(answer)}
    return Task.model_validate({"messages": [{"role": "user", "content": prompt}], "info": data, "gold": gold, **named})
