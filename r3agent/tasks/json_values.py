"""JSON of files, read without loss, and the conversion of column values to the JSON of a task.

Records hold integers of 64 bits and floats, so a number with more digits becomes text. Dates become ISO text, numpy's
numbers become numbers, and missing values `None`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
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

    Raises:
        ConfigError: as `JsonReader`.
    """
    reader = JsonReader([text], path)
    while reader.skip():
        line = reader.line
        yield line, reader.value()


class JsonReader:
    """Reader of JSON values, of a text in parts; it keeps the parts of one value.

    Integers of any size keep their digits, and decimals with more than a float has.

    Args:
        parts: parts of the text, which may divide it anywhere.
        path: name of the file, for messages.

    Raises:
        ConfigError: it is not JSON, or an object repeats a key; the message has the line.
    """

    def __init__(self, parts: Iterable[str], path: str) -> None:
        self._parts, self._path = iter(parts), path
        self._text, self._place, self._column, self._is_whole = "", 0, 0, False
        self.line = 1
        """Line of the place that is read next."""

    def skip(self) -> bool:
        """Go to the next character that is no space; return False at the end."""
        while True:
            self._go(_SPACE.match(self._text, self._place).end())  # pyright: ignore[reportOptionalMemberAccess]
            if self._place < len(self._text):
                return True
            if not self._more():
                return False

    def is_array(self) -> bool:
        """Return True if an array begins here."""
        return self._text[self._place] == "["

    def value(self) -> Any:
        """Read the value that begins here."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._place)
            except (ValueError, RecursionError) as error:
                if self._may_go_on(error) and self._more():
                    continue
                raise self._fault(error) from error
            if _DIGITS.fullmatch(self._text, end) and self._more():  # a number may go on
                continue
            self._go(end)
            return value

    def items(self) -> Iterator[Any]:
        """Yield the items of the array that begins here, one by one."""
        self._go(self._place + 1)
        if self.skip() and self._text[self._place] == "]":
            self._go(self._place + 1)
            return
        while True:
            yield self.value()
            mark = self._text[self._place] if self.skip() else ""
            if mark not in (",", "]"):
                raise self._fault(json.JSONDecodeError("Expecting ',' delimiter", self._text, self._place))
            self._go(self._place + 1)
            if mark == "]":
                return
            self.skip()

    def _go(self, place: int) -> None:
        self.line += self._text.count("\n", self._place, place)
        self._place = place

    def _more(self) -> bool:
        """Read as much again as is left, and drop what was read; return False if there is no more."""
        if self._is_whole:
            return False
        read, left = list[str](), len(self._text) - self._place
        while sum(map(len, read)) <= left:
            if (part := next(self._parts, None)) is None:
                self._is_whole = True
                break
            read.append(part)
        if not read:
            return False
        self._column = self._column_of(self._place)
        self._text, self._place = self._text[self._place :] + "".join(read), 0
        return True

    def _column_of(self, place: int) -> int:
        """Return the number of characters before a place in its line."""
        newline = self._text.rfind("\n", 0, place)
        return place + self._column if newline < 0 else place - newline - 1

    def _may_go_on(self, error: Exception) -> bool:
        """Return True if what is wrong may be that the text is not whole yet."""
        if not isinstance(error, json.JSONDecodeError):
            return False
        return error.msg.startswith("Unterminated") or error.pos >= len(self._text) - len("Infinity")

    def _fault(self, error: Exception) -> ConfigError:
        fault = str(error)
        if isinstance(error, json.JSONDecodeError):
            line = self.line + self._text.count("\n", self._place, error.pos)
            fault = f"{error.msg}: line {line} column {self._column_of(error.pos) + 1}"
        return ConfigError(f"{self._path}:{self.line}: not JSON: {fault}; mend it or remove it")


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


_SPACE, _DIGITS = re.compile(r"[ \t\r\n]*"), re.compile(r"[-+.eE0-9]*")
_DECODER = json.JSONDecoder(parse_float=_exact, object_pairs_hook=_unique)
