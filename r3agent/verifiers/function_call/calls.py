"""Parse the function calls of a reply: the endpoint's `tool_calls`, or calls written as text.

In text, calls are `<tool_call>` blocks with anything around them. Otherwise the whole reply (without a code fence and
the text before `</think>`) must be a JSON list `[{"name": ..., "arguments": {...}}]`, one such object, or Python calls.
Overlong replies, duplicate keys, NaN and infinity are refused. Whatever a model writes, parsing is fast and raises
nothing but `Unreadable`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from r3agent.verifiers.function_call.python_calls import parse_python

MAX_CHARS = 50_000
"""Maximum length of a parsed text, or of all arguments of native calls together."""

OPEN, CLOSE, FENCE = "<tool_call>", "</tool_call>", "```"


class Unreadable(ValueError):
    """The text is not a list of calls."""


@dataclass(frozen=True)
class FunctionCall:
    """Function call in a reply."""

    name: str
    arguments: dict[str, Any]


def native_calls(tool_calls: Sequence[Any]) -> list[FunctionCall]:
    """Return the calls in an assistant message's `tool_calls`.

    Raises:
        Unreadable: a call has no name, or its arguments are not a JSON object.
    """
    functions = [call.get("function") if isinstance(call, dict) else None for call in tool_calls]
    written = [function.get("arguments") for function in functions if isinstance(function, dict)]
    _bounded(sum(len(text) for text in written if isinstance(text, str)))
    return [_native(function) for function in functions]


def text_calls(text: str) -> list[FunctionCall]:
    """Return the calls written in a text; none if it is empty or an empty list.

    Raises:
        Unreadable: the text is something else, such as prose.
    """
    if OPEN in text:
        return tagged_calls(text)
    _bounded(len(text))
    text = text.rpartition("</think>")[2].strip()
    if text.startswith(FENCE) and text.endswith(FENCE) and len(text) > 2 * len(FENCE):
        text = _unfenced(text)
    return _calls(text)


def tagged_calls(text: str) -> list[FunctionCall]:
    """Return the calls in the `<tool_call>` blocks of a text; the last block may lack its end tag.

    Raises:
        Unreadable: a block contains something else.
    """
    text = text.rpartition("</think>")[2]
    _, opened, rest = text.partition(OPEN)
    _bounded(len(rest))
    blocks = [block.partition(CLOSE)[0].strip() for block in rest.split(OPEN)] if opened else []
    return [call for block in blocks for call in _calls(block)]


def _calls(text: str) -> list[FunctionCall]:
    if not text:
        return []
    if text[0] in "[{":
        try:
            data = _json(text)
        except json.JSONDecodeError:
            pass  # `[f(a=1)]`
        else:
            return [_object(item) for item in (data if isinstance(data, list) else [data])]
    try:
        return [FunctionCall(name, arguments) for name, arguments in parse_python(text)]
    except ValueError as error:
        raise Unreadable(str(error)) from None


def _native(function: Any) -> FunctionCall:
    if not isinstance(function, dict):
        raise Unreadable("a tool call without a function")
    arguments = function.get("arguments") or {}  # servers encode a call without arguments in several ways
    if isinstance(arguments, str):
        try:
            arguments = _json(arguments)
        except json.JSONDecodeError:
            raise Unreadable("arguments that are not JSON") from None
    return _object({"name": function.get("name"), "arguments": arguments})


def _object(item: Any) -> FunctionCall:
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        raise Unreadable('a call is {"name": ..., "arguments": {...}}')
    arguments = item.get("arguments", item.get("parameters", {}))  # Llama's key is `parameters`
    if not isinstance(arguments, dict):
        raise Unreadable("arguments that are not a JSON object")
    return FunctionCall(item["name"], arguments)


def _json(text: str) -> Any:
    """Parse JSON.

    Raises:
        json.JSONDecodeError: it is not JSON.
        Unreadable: it is JSON, but too deep, or with a duplicate key or a number out of bounds.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_finite)
    except (json.JSONDecodeError, Unreadable):
        raise
    except (ValueError, RecursionError):  # an integer of thousands of digits raises ValueError
        raise Unreadable("JSON that is too deep, or a number that is too long") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise Unreadable("a key that appears twice")
    return made


def _finite(text: str) -> float:
    return number if math.isfinite(number := float(text)) else _no_number(text)


def _no_number(text: str) -> NoReturn:
    raise Unreadable("a number that is not finite")


def _bounded(n_chars: int) -> None:
    if n_chars > MAX_CHARS:
        raise Unreadable(f"{n_chars} characters; calls have at most {MAX_CHARS}")


def _unfenced(text: str) -> str:
    inside = text[len(FENCE) : -len(FENCE)]
    language, newline, rest = inside.partition("\n")
    return rest.strip() if newline and language.strip().isalnum() else inside.strip()
