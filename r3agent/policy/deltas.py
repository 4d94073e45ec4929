"""Add the deltas of a streamed assistant message to what came before: its content, tool calls and other fields."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from r3agent.records.reply import as_json

PIECES = re.compile("text|content|think|reason|refusal|summary|plan|arguments")
"""Names of fields whose text comes in pieces; that of others, such as ids and signatures, is whole in one delta."""

FUNCTION = ("name", "arguments")


def add_content(before: Any, delta: Any) -> Any:
    """Return a content with one more delta: text, or parts if one of the two has any."""
    if not delta:
        return before
    if isinstance(before, str | None) and isinstance(delta, str):
        return (before or "") + delta
    parts = [{"type": "text", "text": before}] if isinstance(before, str) and before else list(before or ())
    for part in delta if isinstance(delta, list) else [delta]:
        _add_part(parts, dict(part) if isinstance(part, Mapping) else {"type": "text", "text": str(part)})
    return parts


def add_fields(before: dict[str, Any], delta: Mapping[str, Any]) -> None:
    """Add the fields of a delta: texts are joined, objects merged, and lists extended."""
    for key, value in delta.items():
        old = before.get(key)
        if value is None:
            continue
        if isinstance(value, str) and isinstance(old, str) and PIECES.search(key):
            before[key] = old + value
        elif isinstance(value, Mapping) and isinstance(old, dict):
            add_fields(old, value)
        elif isinstance(value, list):
            parts: list[Any] = before.setdefault(key, [])
            for part in value:
                _add_part(parts, part)
        elif value != "" or not old:
            before[key] = dict(value) if isinstance(value, Mapping) else value


def _add_part(parts: list[Any], part: Any) -> None:
    """Add an object to a list; one that continues the last, by its type, index and id, is merged."""
    if isinstance(part, Mapping):
        last = parts[-1] if parts and isinstance(parts[-1], dict) else {}
        is_same = part.get("type") and all(last.get(key) == part.get(key) for key in ("type", "index"))
        if is_same and "data" not in part and part.get("id") in (None, last.get("id")):
            add_fields(last, part)
            return
    parts.append(dict(part) if isinstance(part, Mapping) else part)


def add_calls(calls: list[dict[str, Any]], parts: Any) -> None:
    """Add the parts of tool calls in one delta; two with one index and no ids are parts of two calls."""
    indices: list[Any] = []
    for part in filter(None, [parts] if isinstance(parts, Mapping) else parts):
        _add_call(calls, part, is_another=part.get("index") in indices and not part.get("id"))
        indices.append(part.get("index"))


def _add_call(calls: list[dict[str, Any]], part: Mapping[str, Any], *, is_another: bool) -> None:
    """Add a part of a tool call to the calls so far, in a list in the order in which they began.

    The first part has the index, the id and the name, every part a piece of the arguments. Servers also leave out the
    index, use it again for the next call, or repeat the id and the name in every part.
    """
    function = part.get("function")
    function = function if isinstance(function, Mapping) else {key: part[key] for key in FUNCTION if key in part}
    call = None if is_another and function.get("name") else _continued(calls, part, function)
    if call is None:
        calls.append(call := {"index": part.get("index"), "id": None, "function": {"name": "", "arguments": ""}})
    call["id"] = call["id"] or part.get("id")
    add_fields(call, {key: value for key, value in part.items() if key not in ("id", "index", "function", *FUNCTION)})
    called: dict[str, Any] = call["function"]
    add_fields(called, {key: value for key, value in function.items() if key not in FUNCTION})
    called["name"] = _add_name(called["name"], function.get("name") or "")
    called["arguments"] = _add_arguments(called["arguments"], function.get("arguments"))


def _continued(
    calls: list[dict[str, Any]], part: Mapping[str, Any], function: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Find the call that a part continues; `None` if it begins another."""
    index, id_, name, arguments = part.get("index"), part.get("id"), function.get("name"), function.get("arguments")
    found = next((call for call in reversed(calls) if index is not None and call["index"] == index), None)
    if found is None and id_:
        found = next((call for call in reversed(calls) if call["id"] == id_ and not _is_whole(call)), None)
    if found is None and calls and (index is None or not name):
        found = calls[-1]
    if found is None or not name:
        return found
    before = found["function"]["arguments"]
    if id_ and found["id"] and id_ != found["id"]:
        begins = index is None or not before or _is_whole(found)  # else its id is another in every part
    else:
        begins = _is_whole(found) and arguments not in (None, "") and as_json(arguments) != before
    return None if begins else found


def _add_name(before: str, piece: str) -> str:
    """Return the name with one more piece, which may repeat it."""
    return piece if piece.startswith(before) else before + piece


def _add_arguments(before: str, piece: Any) -> str:
    """Return the arguments with one more piece; an object is all of them, and all of them may be repeated."""
    if piece is None:
        return before
    if not isinstance(piece, str):
        return as_json(piece)
    is_again = before.startswith("{") and piece == before
    return piece if is_again or (before == "{}" and piece.startswith("{")) else before + piece


def _is_whole(call: Mapping[str, Any]) -> bool:
    try:
        return isinstance(json.loads(call["function"]["arguments"]), dict)
    except (ValueError, RecursionError):
        return False
