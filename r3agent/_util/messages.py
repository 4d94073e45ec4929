"""Common parts of error messages: the nearest known name, a shortened value, pydantic's errors on one line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import is_dataclass
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

MAX_VALUE_CHARS = 80
"""Maximum length of a value in a message."""
MAX_ERRORS = 5
"""Maximum number of a validation's errors in a message."""


def did_you_mean(name: str, known: Iterable[str], *, prefix: str = "") -> str:
    """Suggest the nearest known name, or list all of them if none is near.

    Args:
        prefix: text before the suggested name, such as `collect.`.
    """
    known = list(known)
    nearest = get_close_matches(name, known, n=1)
    return f"did you mean {prefix + nearest[0]!r}?" if nearest else f"known are {', '.join(known)}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest the nearest known name, before a list of all; empty if none is near."""
    near = get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}? " if near else ""


def count(n: int, noun: str) -> str:
    """Render a number of things, such as `1 episode` or `2 episodes`."""
    return f"{n} {noun if n == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """Render the plural of a noun, such as `tries` or `branches`."""
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("ch", "sh")) else f"{noun}s"


def listed(head: str, lines: Iterable[str]) -> str:
    """Render a head with a list below it, one line each."""
    return "\n  ".join([head, *lines])


def shorten(value: object) -> str:
    """Render a value in at most `MAX_VALUE_CHARS` characters."""
    text = repr(value)
    return text if len(text) <= MAX_VALUE_CHARS else f"{text[:MAX_VALUE_CHARS]}..."


def explain(error: Exception, model: type[BaseModel], *, root: str = "") -> str:
    """Render a validation error on one line: each key with its value and limit, or the nearest known key.

    Args:
        error: pydantic's error; any other is rendered unchanged.
        model: class that was validated.
        root: key of the whole value, such as `context`.
    """
    if not isinstance(error, ValidationError):
        return str(error)
    errors = error.errors(include_url=False)
    parts = {each["loc"][:n] for each in errors for n in range(len(each["loc"]))}
    errors = [each for each in errors if each["loc"] not in parts]  # a list is too short if its items are invalid
    lines = [_explain_one(each, model, root) for each in errors[:MAX_ERRORS]]
    more = len(errors) - MAX_ERRORS
    return "; ".join(lines + ([f"and {more} more errors"] if more > 0 else []))


def _explain_one(error: Any, model: type[BaseModel], root: str) -> str:
    path = [*filter(None, [root]), *map(str, error["loc"])]
    key = ".".join(path)
    message = error["msg"].replace("valid tuple", "valid list").replace("Tuple should", "List should")  # in JSON
    if error["type"] == "extra_forbidden":
        prefix = "".join(f"{parent}." for parent in path[:-1])
        return f"unknown key {key!r}; {did_you_mean(path[-1], _fields_at(model, error['loc'][:-1]), prefix=prefix)}"
    if error["type"] == "missing":
        return f"{key}: {message}"
    if error["type"] == "value_error":  # may concern several keys; the message names them
        return f"{key}: {error['ctx']['error']}" if key else str(error["ctx"]["error"])
    message += _remedy(error["type"], error["input"], path)
    return f"{key} = {shorten(error['input'])}: {message}" if key else f"{shorten(error['input'])}: {message}"


def _remedy(kind: str, value: Any, path: list[str]) -> str:
    """Return how to write a value of another type: the converter of its library, or an example."""
    is_message, is_tool = "messages" in path or path[-1:] == ["gold"], "tools" in path
    if kind == "dict_type":
        libraries = {
            base.__module__.partition(".")[0] for base in (value if isinstance(value, type) else type(value)).__mro__
        }
        if is_tool and (callable(value) or "langchain_core" in libraries):
            return "; convert it with langchain_core.utils.function_calling.convert_to_openai_tool"
        if "langchain_core" in libraries:
            return "; convert it with langchain_core.messages.convert_to_openai_messages"
        if not isinstance(value, type) and hasattr(value, "model_dump"):
            return "; convert it with its model_dump(exclude_none=True)"
        if not isinstance(value, type) and is_dataclass(value):
            return "; convert it with dataclasses.asdict"
        if is_message:
            return '; write {"role": "user", "content": "..."}'
    if kind in ("tuple_type", "list_type", "sequence_type", "sequence_str"):
        if is_message:
            return '; write [{"role": "user", "content": "..."}]'
        if isinstance(value, str | dict):
            return f"; write [{shorten(value)}]"
    return ""


def _fields_at(model: type[BaseModel], path: Iterable[Any]) -> list[str]:
    """Return the field names of the record at a path below `model`, through optional fields and lists."""
    for name in path:
        if name not in model.model_fields:
            continue
        annotation = model.model_fields[name].annotation
        kinds = [annotation, *get_args(annotation)]
        model = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), model)
    return list(model.model_fields)
