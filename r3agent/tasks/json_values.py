"""JSON of files, read without loss, and the conversion of column values to the JSON of a task.

Records hold integers of 64 bits and floats, so a number with more digits becomes text. Dates become ISO text, numpy's
numbers become numbers, and missing values `None`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from r3agent._util.messages import shorten
from r3agent.errors import ConfigError
from r3agent.records.json_values import well_formed

MAX_INTEGER = 2**63
"""Limit of integers, beyond which readers of records disagree."""

MAX_DIGITS = 15
"""Digits of a decimal that any float keeps."""


def json_stream(text: str, path: str) -> Iterator[tuple[int, Any]]:
    """Yield each JSON value of a text with the line it begins on: JSON lines, or one value that spans many lines.

    Integers of any size keep their digits, and decimals with more than a float has.

    Raises:
        ConfigError: it is not JSON, or an object repeats a key; the message has the line.
    """
    place, line = 0, 1
    while (start := _SPACE.match(text, place).end()) < len(text):  # pyright: ignore[reportOptionalMemberAccess]
        line += text.count("\n", place, start)
        try:
            value, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            fault = str(error).partition(" (char")[0]
            raise ConfigError(f"{path}:{line}: not JSON: {fault}; mend it or remove it") from error
        yield line, value
        line += text.count("\n", start, end)
        place = end


def exact_json(value: Any, where: str) -> Any:
    """Convert a value to JSON that a record holds without loss.

    Args:
        where: row and column, for the message.

    Raises:
        ConfigError: JSON cannot represent it: infinity, half of a character, bytes that are not text, an image.
    """
    match value:
        case None | bool():
            return value
        case str() if value.isascii() or well_formed(value) is value:
            return value
        case int():
            return value if abs(value) < MAX_INTEGER else str(value)
        case float() if math.isnan(value):
            return None
        case float() if math.isfinite(value):
            return float(value)  # numpy's is one too
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case Decimal() | UUID():
            return str(value)
        case dict():
            return {str(key): exact_json(item, where) for key, item in value.items()}
        case list() | tuple():
            return [exact_json(item, where) for item in value]
        case bytes():
            try:
                return value.decode()
            except UnicodeDecodeError:
                pass
        case _ if hasattr(value, "tolist"):  # numpy's array or scalar
            return exact_json(value.tolist(), where)
        case _:
            pass
    raise ConfigError(
        f"{where}: {shorten(value)}, a {type(value).__name__} that JSON cannot hold; leave the column out: name those "
        'to keep with task.params.info, e.g. ["level"]'
    )


def _exact(text: str) -> float | Decimal:
    """Parse a decimal; one that no float writes stays a decimal."""
    number = float(text)
    if len(text) <= MAX_DIGITS and "e" not in text.lower():
        return number
    written = {Decimal(repr(number)), Decimal(f"{number:.17g}")}
    return number if (exact := Decimal(text)) in written else exact


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return made


_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder(parse_float=_exact, object_pairs_hook=_unique)
