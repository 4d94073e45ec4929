"""Task of an episode, as the policy and the verifier see it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from math import isfinite
from os import PathLike
from typing import Any, TypeAlias, cast

from pydantic import Field, ValidationError, model_validator

from r3agent._util.messages import explain, shorten
from r3agent.errors import ArgumentError, ConfigError
from r3agent.records.json_values import (
    MAX_INTEGER,
    MIN_INTEGER,
    NO_JSON,
    copy_json,
    is_portable,
    json_bytes,
    json_value,
)
from r3agent.records.record import StoredRecord

Message: TypeAlias = dict[str, Any]
"""One chat message in the format of OpenAI's API: `{"role": ..., "content": ...}`."""

TASK_EXAMPLE = '{"task": {"messages": [{"role": "user", "content": "..."}]}}'
"""Minimal input of the graph, for error messages."""


class Task(StoredRecord):
    """One problem: the prompt for the policy and the data for the verifier."""

    id: str = Field(default_factory=str)  # for type checkers; `_default_id` sets it before this default applies
    """Id that is stable across runs; resuming and splits depend on it. Default: a hash of the messages."""
    messages: tuple[Message, ...] = Field(min_length=1)
    """The conversation so far, ending with the user's request."""
    tools: tuple[dict[str, Any], ...] = ()
    """Tool definitions in the format of OpenAI's API."""
    info: dict[str, Any] = {}
    """Data for the verifier; the policy never sees it."""
    gold: Message | None = None
    """An assistant message that passes, if one is known; `audit` checks the verifier with it. The policy never sees
    it."""

    def __init__(self, /, **fields: Any) -> None:
        """Make a task; `model_validate` reads a stored one, whatever numbers it has.

        Raises:
            ArgumentError: a field is not valid, a value is not JSON, or one that readers of JSON change.
        """
        super().__init__(**fields)
        for name in ("messages", "tools", "info", "gold"):
            if is_portable(fields.get(name)):
                continue
            value = json_value(fields.get(name), losses=(losses := []))
            foreign = (f"{name}.{loss}" for loss in losses if loss.endswith(NO_JSON))
            if fault := _fault(value, name) or next(foreign, None):
                raise ArgumentError(f"{fault}; a task is JSON: convert the value, e.g. to text")

    # Parsing of a task within a record does not call it.
    __init__.__pydantic_base_init__ = True  # pyright: ignore[reportFunctionMemberAccess]

    @model_validator(mode="before")
    @classmethod
    def _default_id(cls, data: Any) -> Any:
        if isinstance(data, dict) and "id" not in data and "messages" in data:
            text = json.dumps(json_value(data["messages"]), sort_keys=True)
            return {"id": sha256(text.encode()).hexdigest()[:16], **data}
        return data

    def fresh(self) -> Task:
        """Copy with JSON values of its own, for an application's code, which may change them."""
        parts: dict[str, Any] = {"messages": tuple(copy_json(self.messages)), "tools": tuple(copy_json(self.tools))}
        return self.model_copy(update={**parts, "info": copy_json(self.info), "gold": copy_json(self.gold)})

    @property
    def digest(self) -> str:
        """Hash of the whole task: messages, tools, the verifier's data and the gold answer."""
        return sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:16]

    @classmethod
    def of(cls, given: object, *, root: str = "task") -> Task:
        """Parse a task that a caller passed, as a record or as its JSON.

        Args:
            root: name of the task in messages.

        Raises:
            ConfigError: it is not a valid task.
        """
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise ConfigError(f"{explain(error, cls, root=root)}; give one as in {TASK_EXAMPLE}") from None


def _fault(value: Any, where: str) -> str | None:
    """Return the place of a number that readers of JSON change, and the reason."""
    match value:
        case dict():
            found = (_fault(part, f"{where}.{key}") for key, part in value.items())
        case list():
            found = (_fault(part, f"{where}[{i}]") for i, part in enumerate(value))
        case int() if not MIN_INTEGER <= value <= MAX_INTEGER:
            return f"{where} = {shorten(value)}: an integer of more than 64 bits"
        case float() if not isfinite(value):
            return f"{where} = {value}: not a finite number"
        case _:
            return None
    return next(filter(None, found), None)


def prompt_key(messages: Sequence[Message]) -> str:
    """Return a hash of a prompt, by which tasks of other ids that have the same one are found."""
    return sha256(json_bytes(messages, sort_keys=True)).hexdigest()[:32]


def each_task(tasks: Iterable[Task | Mapping[str, Any]]) -> Iterator[Task]:
    """Yield the tasks that a caller passed, each as a record or as its JSON.

    Raises:
        ConfigError: it is one task, a name or a path instead of tasks, or one of them is not valid.
    """
    given = cast(object, tasks)
    if isinstance(given, str | PathLike):
        raise ConfigError(
            f"tasks = {str(given)!r}: the name of a source; pass r3agent.tasks.find_tasks({str(given)!r})"
        )
    if isinstance(given, Task | Mapping):
        raise ConfigError(f"tasks = {shorten(given)}: one task; pass a list of tasks")
    if not isinstance(given, Iterable):
        raise ConfigError(f"tasks = {shorten(given)}: no tasks can be read from it; pass a list of r3agent.Task")
    for i, task in enumerate(tasks):
        yield Task.of(task, root=f"tasks[{i}]")
