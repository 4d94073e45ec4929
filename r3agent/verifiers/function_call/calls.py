"""Parse the function calls of a reply: the endpoint's `tool_calls`, or calls written as text.

Models write calls as their own chat template does, whatever they are asked for. In text, calls are the whole reply,
else what is between a model family's tags (`MARKS`), else its fenced blocks, with any prose around these. They are JSON
(one object, a list, or several values after one another), a name before its arguments in JSON, or Python calls. In
JSON, a call is an object with a key of `NAMES` and one of `ARGUMENTS`; it may be nested in `function`, or in the
`tool_calls` of a message.

Overlong replies, duplicate keys, NaN and infinity are refused. Whatever a model writes, parsing is fast and raises
nothing but `Unreadable`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from r3agent.verifiers.fences import find_blocks
from r3agent.verifiers.function_call.python_calls import parse_python

MAX_CHARS = 50_000
"""Maximum length of a parsed text, or of all arguments of native calls together."""

MARKS = {
    "<tool_call>": "</tool_call>",  # Hermes, Qwen
    "<tool_calls>": "</tool_calls>",
    "<tools>": "</tools>",  # Qwen2.5-Coder
    "<TOOLCALL>": "</TOOLCALL>",  # Nemotron
    "<function_call>": "</function_call>",
    "<functioncall>": "</functioncall>",
    "<|tool_call|>": "<|/tool_call|>",  # Granite, Phi
    "<|tool_call_start|>": "<|tool_call_end|>",  # LFM2
    "<|python_tag|>": "<|eom_id|>",  # Llama
    "<|python_start|>": "<|python_end|>",  # Llama 4
    "[TOOL_CALLS]": "</s>",  # Mistral
    "functools[": "",  # Phi; the bracket belongs to the list
    "<function=": "</function>",  # Llama, Qwen3-Coder; the name follows
}
"""Texts at the beginning and end of calls; the end may be missing."""

NAMES = ("name", "function", "tool_name", "tool")
ARGUMENTS = ("arguments", "parameters", "args", "input", "tool_input")
LITERALS = {"True": True, "False": False, "None": None}
FORM = 'a call is {"name": ..., "arguments": {...}}'

_OPEN = re.compile("|".join(map(re.escape, MARKS)))
_END = re.compile(r"\s*(?:<\|\w+\|>|</s>|<end_of_turn>|<eos>)$")
"""Special token at the end of a reply, which some servers return."""
_MAX_END = 32
_NAMED = re.compile(r"([\w.-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\]|>)?\s*(?=\{)")
"""Name before arguments: Mistral's `f[ARGS]{...}`, Llama's `f>{...}`."""
_BETWEEN = re.compile(r"[\s,;]*")
_TEMPLATE = re.compile(rf"{_OPEN.pattern}|```|^[\[{{]")
_ATTEMPT = re.compile(
    rf"(?:`{{3}}\w*\s*)?(?:\[?\s*\{{\s*[\"'](?:{'|'.join((*NAMES, *ARGUMENTS, 'tool_calls', 'type', 'id'))})[\"']"
    r"|\[?\s*[\w.]+\(\w+\s*=|\[\s*[\w.]+\(|[\w.]+\([^\n]*\)$)"
)
"""Beginning of calls in JSON or Python, whether they can be read or not."""


class Written(str):
    """Argument in tags, as Qwen3-Coder writes it; only its parameter's type tells text from a number."""


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
    return [_object(function) for function in functions]


def text_calls(text: str) -> list[FunctionCall]:
    """Return the calls written in a text; none if it is empty or an empty list.

    Raises:
        Unreadable: the text is something else, such as prose.
    """
    text = without_thinking(text)
    first = _OPEN.search(text)
    if first and len(text) > MAX_CHARS:
        text = text[first.start() :]  # prose before the tags has no limit
    _bounded(len(text))
    try:
        return _calls(text)
    except Unreadable:
        blocks = [*_marked(text)] if first else [block.text.strip() for block in find_blocks(text, r"\w+")]
        if not blocks and not first:
            raise
    return [call for block in blocks for call in _calls(block)]


def template_calls(text: str) -> list[FunctionCall]:
    """Return the calls that a model which was offered `tools` wrote in text, as its chat template does.

    A server returns them so if it does not parse the template. Prose, and Python calls without brackets, are no calls.

    Raises:
        Unreadable: as `text_calls`.
    """
    return text_calls(text) if _TEMPLATE.search(without_thinking(text)) else []


def is_attempt(text: str) -> bool:
    """Return True if a text is meant as calls, even if they cannot be read; prose is not."""
    text = without_thinking(text)
    return bool(_OPEN.search(text) or _ATTEMPT.match(text))


def without_thinking(text: str) -> str:
    """Return the text after the thinking, without special tokens; nothing if the thinking has no end."""
    text = text.rpartition("</think>")[2].partition("<think>")[0].strip()
    end = len(text)
    while token := _END.search(text, max(0, end - _MAX_END), end):
        end = token.start()
    return text[:end].rstrip()


def _marked(text: str) -> Iterator[str]:
    """Yield the texts between marks; the last may lack its end."""
    opened = list(_OPEN.finditer(text))
    ends = [*(mark.start() for mark in opened[1:]), len(text)]
    for mark, end in zip(opened, ends, strict=True):
        inside = text[mark.end() : end]
        close = MARKS[mark[0]]
        yield inside.partition(close)[0].strip() if close else f"[{inside.strip()}"


def _calls(text: str) -> list[FunctionCall]:
    if not text:
        return []
    name, is_tagged, parameters = text.partition(">")
    if is_tagged and parameters.lstrip().startswith("<parameter="):
        return [FunctionCall(name.strip(), _tagged_arguments(parameters))]
    named = _NAMED.match(text)
    if named or text[0] in "[{":
        try:
            values = _json_values(text[named.end() :] if named else text)
        except json.JSONDecodeError:
            pass  # `[f(a=1)]`
        else:
            if named and len(values) == 1:
                return [_object({"name": named[1], "arguments": values[0]})]
            return [call for value in values for call in _of_value(value)]
    try:
        written = parse_python(text)
    except ValueError as error:
        raise Unreadable(str(error)) from None
    return [_object(call) if isinstance(call, dict) else FunctionCall(*call) for call in written]


def _tagged_arguments(text: str) -> dict[str, Any]:
    """Return the arguments in Qwen3-Coder's `<parameter=NAME>VALUE</parameter>`."""
    before, *parts = text.split("<parameter=")
    arguments: dict[str, Any] = {}
    for part in parts:
        name, _, rest = part.partition(">")
        value, closed, after = rest.partition("</parameter>")
        if before.strip() or not closed or after.strip() or name in arguments:
            raise Unreadable("a parameter is <parameter=NAME>VALUE</parameter>, each once")
        arguments[name] = Written(value.strip())
    return arguments


def typed(value: Any, kind: str = "any") -> Any:
    """Return an argument as its parameter's type: a `Written` one is text, JSON or a literal of Python."""
    if not isinstance(value, Written):
        return value
    if kind == "string":
        return str(value)
    if value in LITERALS:
        return LITERALS[value]
    try:
        [parsed] = _json_values(value)
    except ValueError:
        return str(value)
    return parsed


def _json_values(text: str) -> list[Any]:
    """Parse JSON values that follow one another.

    Raises:
        json.JSONDecodeError, Unreadable: as `_json`.
    """
    values: list[Any] = []
    place = 0
    while place < len(text):
        value, place = _json(text, place)
        values.append(value)
        separator = _BETWEEN.match(text, place)
        place = separator.end() if separator else place
    return values


def _of_value(value: Any) -> list[FunctionCall]:
    if isinstance(value, dict) and isinstance(value.get("tool_calls"), list):
        value = value["tool_calls"]
    return [_object(item) for item in (value if isinstance(value, list) else [value])]


def _object(item: Any) -> FunctionCall:
    if isinstance(item, dict) and isinstance(item.get("function"), dict):
        item = item["function"]  # OpenAI's nesting
    if not isinstance(item, dict):
        raise Unreadable(FORM)
    given = [key for key in ARGUMENTS if key in item]
    # Arguments beside the name must not be taken for a call without any, nor a function's definition for a call.
    if len(given) > 1 or "description" in item or (not given and item.keys() - {*NAMES, "type", "id", "index"}):
        raise Unreadable(FORM)
    name = next((item[key] for key in NAMES if isinstance(item.get(key), str)), None)
    arguments = (item[given[0]] if given else None) or {}  # a call without arguments has several spellings
    if isinstance(arguments, str):
        try:
            [arguments] = _json_values(arguments)
        except (json.JSONDecodeError, ValueError) as error:
            raise error if isinstance(error, Unreadable) else Unreadable("arguments that are not JSON") from None
    if name is None or not isinstance(arguments, dict) or isinstance(arguments.get("properties"), dict):
        raise Unreadable(FORM)
    return FunctionCall(name, arguments)


def _json(text: str, place: int) -> tuple[Any, int]:
    """Parse the JSON value at `place`, and return it with its end.

    Raises:
        json.JSONDecodeError: it is not JSON.
        Unreadable: it is JSON, but too deep, or with a duplicate key or a number out of bounds.
    """
    try:
        return _DECODER.raw_decode(text, place)
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


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_finite)


def _bounded(n_chars: int) -> None:
    if n_chars > MAX_CHARS:
        raise Unreadable(f"{n_chars} characters; calls have at most {MAX_CHARS}")
