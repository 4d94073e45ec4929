"""Values that applications put into a record, as JSON that every reader can read.

Scalars of NumPy become numbers, dates their ISO form, sets sorted lists, data classes and pydantic models objects, keys
strings. A lone surrogate, which is half of a character and no Unicode text, becomes U+FFFD.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Set
from contextlib import suppress
from copy import deepcopy
from datetime import date, time, timedelta
from enum import Enum
from functools import partial
from math import isfinite
from typing import Any

import orjson
from pydantic import BaseModel
from pydantic_core import from_json

from r3agent._util.messages import shorten

MAX_DEPTH = 90
"""Levels of nesting of a value that are kept: parsers of JSON refuse more than 100 to 200, with those of the record."""

RECORD_DEPTH = 10
"""Levels of nesting of a record around such a value, at most."""

NO_JSON = "no JSON"
"""End of the report of a loss: an object, of which only the text is kept."""

MIN_INTEGER, MAX_INTEGER = -(2**63), 2**64 - 1
"""Range of integers, beyond which readers of records disagree."""

MAX_DIGITS = 4300
"""Digits of an integer that Python parses."""


def plain(value: Any) -> Any:
    """Return the Python value of a scalar of NumPy, PyTorch or another library with `item()`; any other unchanged."""
    if isinstance(value, bool | int | float) or not callable(item := getattr(value, "item", None)):
        return value
    try:
        return item()
    except (TypeError, ValueError, RuntimeError):  # an array of several values
        return value


def well_formed(text: str) -> str:
    """Join the halves of surrogate pairs, and replace a lone one by U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def json_value(value: Any, *, finite: bool = False, losses: list[str] | None = None) -> Any:
    """Convert a value to JSON; never raise.

    Args:
        finite: replace infinities and NaN by `None`; otherwise they stay, for code in this process.
        losses: receives the place of each part that cannot be restored from the JSON, and what was there.
    """
    try:
        return _copy(value, MAX_DEPTH)
    except _NotPlainError:
        pass
    max_depth = MAX_DEPTH + (RECORD_DEPTH if isinstance(value, BaseModel) else 0)
    return _Conversion(finite, [] if losses is None else losses, max_depth).of(value, (), ())


def copy_json(value: Any) -> Any:
    """Copy a value that is JSON deeply, with its tuples as lists; this takes a third of the time of `deepcopy`."""
    try:
        return _copy(value, MAX_DEPTH)
    except _NotPlainError:
        return deepcopy(value)


def json_bytes(value: Any, *, sort_keys: bool = False) -> bytes:
    """Write JSON, also of half characters, integers with more than 64 bits, and keys of any type; never raise.

    What is not finite is null.
    """
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_SORT_KEYS if sort_keys else None)
    except TypeError:
        pass
    written = partial(json.dumps, separators=(",", ":"), default=str, sort_keys=sort_keys, allow_nan=False)
    try:
        return written(value).encode()
    except (ValueError, TypeError, RecursionError):
        return written(json_value(value, finite=True)).encode()


def is_portable(value: Any) -> bool:
    """Return True if a value is JSON that every reader reads alike, without integers of more than 64 bits."""
    try:
        _copy(value, MAX_DEPTH)
    except _NotPlainError:
        return False
    return True


class _NotPlainError(Exception):
    """A value needs a conversion."""


def _copy(value: Any, depth: int) -> Any:
    """Copy a value that is JSON as it is, as nearly all are; this takes a tenth of the time of a conversion."""
    kind = type(value)
    if kind is str:
        if value.isascii() or well_formed(value) is value:
            return value
    elif kind is dict:
        if depth:
            copied: dict[str, Any] = {}
            for key, item in value.items():  # a generator over the keys alone would take as long as all the rest
                if type(key) is not str or not (key.isascii() or well_formed(key) is key):
                    raise _NotPlainError
                copied[key] = _copy(item, depth - 1)
            return copied
    elif kind is list or kind is tuple:
        if depth:
            return [_copy(item, depth - 1) for item in value]
    elif (
        value is None
        or kind is bool
        or (kind is int and MIN_INTEGER <= value <= MAX_INTEGER)
        or (kind is float and isfinite(value))
    ):
        return value
    raise _NotPlainError


def parse_json(line: bytes | str) -> Any:
    """Parse JSON as written by any JSON library: with integers of any size, `NaN`, `Infinity` and lone surrogates.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        return from_json(line)
    except ValueError:
        try:
            return json.loads(line)
        except RecursionError:
            raise ValueError("nested too deeply") from None


@dataclasses.dataclass(frozen=True)
class _Conversion:
    finite: bool
    losses: list[str]
    max_depth: int

    def of(self, value: Any, path: tuple[str, ...], inside: tuple[int, ...]) -> Any:
        """Convert a value at a path; `inside` has the identities of the containers around it."""
        match value:
            case None | bool():
                return value
            case Enum():
                return self.of(value.value, path, inside)
            case str():
                text = well_formed(str.__str__(value))
                is_whole = text.count("\ufffd") == value.count("\ufffd")
                return text if is_whole else self._lost(path, value, text, "half of a character")
            case int():
                number = int(value)
                if number.bit_length() * 0.30103 < MAX_DIGITS:
                    return number
                return self._lost(path, "an integer", hex(number), f"more than {MAX_DIGITS} digits, hexadecimal")
            case float():
                number = float(value)
                return self._lost(path, number, None, "not finite") if self.finite and not isfinite(number) else number
            case _:
                pass
        if (scalar := plain(value)) is not value:
            return self.of(scalar, path, inside)
        items = _items(value)
        if items is None:
            return self._as_text(path, value)
        if id(value) in inside or len(inside) >= self.max_depth:
            return self._lost(path[:3], "a value", None, f"in itself, or nested deeper than {self.max_depth} levels")
        inside = (*inside, id(value))
        if not isinstance(items, dict):
            return [self.of(item, (*path, str(i)), inside) for i, item in enumerate(items)]
        converted: dict[str, Any] = {}
        for key, item in items.items():
            name = self.of(_key(key), path, inside)
            while name in converted:
                name += "_"
            converted[name] = self.of(item, (*path, name), inside)
        return converted

    def _as_text(self, path: tuple[str, ...], value: Any) -> str:
        match value:
            case date() | time():
                return value.isoformat()
            case timedelta():
                return str(value)
            case bytes() | bytearray() | memoryview():
                content = bytes(value)
                try:
                    return content.decode()
                except UnicodeDecodeError:
                    return base64.b64encode(content).decode()
            case _:
                text = well_formed(any_text(value))
                return self._lost(path, type(value).__name__, text, NO_JSON)

    def _lost(self, path: tuple[str, ...], value: object, kept: Any, why: str) -> Any:
        quoted = value if isinstance(value, str) and " " in value else shorten(value)
        self.losses.append(well_formed(f"{'.'.join(path) or 'the value'}: {quoted}: {why}"))
        return kept


def _items(value: Any) -> dict[Any, Any] | Iterable[Any] | None:
    """Return the items of a container; `None` for any other object."""
    with suppress(Exception):  # an application's own class
        match value:
            case BaseModel():
                return {**dict(value), **(value.model_extra or {})}
            case Mapping():
                return dict(value)
            case list() | tuple():
                return value
            case Set():
                return sorted(value, key=lambda item: (type(item).__name__, any_text(item)))
            case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
                return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            case _:
                convert: Callable[[], Any] | None = getattr(value, "tolist", None)  # arrays
                listed = convert() if callable(convert) and not isinstance(value, type | memoryview) else None
                return listed if isinstance(listed, list) else None
    return None


def _key(key: Any) -> str:
    if isinstance(key, Enum):
        key = key.value
    if isinstance(key, str):
        return key
    return json.dumps(key) if key is None or isinstance(key, bool | float) else any_text(key)


def any_text(value: Any) -> str:
    """Return the text of any object, at most 1,000 characters; never raise."""
    try:
        # An address differs from process to process.
        return re.sub(r" at 0x[0-9a-f]+", "", str(value)[:1000])
    except Exception:  # an application's own class
        return f"<{type(value).__name__}>"
