"""Tasks from a JSON Lines file: each line is a `Task`, or `{"prompt": "...", "answer": ...}` and what else the
verifier needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson
from pydantic import ValidationError

from r3agent.errors import ConfigError
from r3agent.trajectory import Task


def load_jsonl(path: str | Path) -> Iterator[Task]:
    """Yield the tasks of a file.

    Raises:
        ConfigError: the file is missing, a line is not a task, or two tasks share an id.
    """
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"task file {path}: {error.strerror}") from error
    seen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            data = orjson.loads(line)
            if isinstance(data, dict) and "prompt" in data:
                messages = ({"role": "user", "content": data.pop("prompt")},)
                task_id = {"id": str(data.pop("id"))} if "id" in data else {}
                data = {"messages": messages, "info": data, **task_id}
            task = Task.model_validate(data)
        except (orjson.JSONDecodeError, ValidationError) as error:
            raise ConfigError(
                f'{path}:{number}: not a task: {error}; a line is {{"prompt": "...", "answer": ...}} '
                'or {"id": "...", "messages": [...], "info": {...}}'
            ) from error
        if task.id in seen:
            raise ConfigError(f"{path}:{number}: task id {task.id!r} appears twice; ids must be unique")
        seen.add(task.id)
        yield task
