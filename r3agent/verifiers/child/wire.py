"""Protocol between tests and answer: requests and replies in JSON, with plain values or references to objects."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from typing import Any

MAX_MESSAGE_BYTES = 16 << 20
_DTYPE = re.compile(r"[<>|=][biufcUS]\d+")
"""Types of arrays of plain numbers and texts."""


_DAY, _TIME = ("year", "month", "day"), ("hour", "minute", "second", "microsecond")
DATES = {
    "date": _DAY,
    "time": _TIME,
    "datetime": (*_DAY, *_TIME),
    "timedelta": ("days", "seconds", "microseconds"),
}
"""Fields of the classes of `datetime`, of which those without a time zone are plain."""


class HungUp(BaseException):
    """The other side ended or sent an invalid message; `except Exception` in a test does not catch it."""


class Peer:
    """One end of the connection.

    A request may arrive while one's own is pending, for example if an answer calls a function of the test.
    """

    def __init__(self) -> None:
        self.reading, self.writing = os.dup(0), os.dup(1)
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, 0)
        os.dup2(nowhere, 1)

    def ask(self, *request: Any) -> list[Any]:
        """Send a request and return its reply: `["ok", ...]` or `["raise", ...]`."""
        self.send(request)
        while (message := self.receive())[0] not in ("ok", "raise"):
            self.send(self.answer(message))
        return message

    def answer(self, request: list[Any]) -> list[Any]:
        raise NotImplementedError

    def send(self, message: Any) -> None:
        data = json.dumps(message).encode()
        data = b"%08x" % len(data) + data
        try:
            while data:
                data = data[os.write(self.writing, data) :]
        except OSError:
            raise HungUp("the answer's process has ended") from None

    def receive(self) -> list[Any]:
        try:
            size = int(self._read(8), 16)
            if not 0 < size <= MAX_MESSAGE_BYTES:
                raise ValueError
            message = json.loads(self._read(size))
            if not isinstance(message, list) or not message:
                raise ValueError
        except (ValueError, RecursionError):
            raise HungUp(f"not a message, or one over {MAX_MESSAGE_BYTES} bytes") from None
        return message

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = os.read(self.reading, size - len(data))
            if not piece:
                raise HungUp("the answer's process has ended")
            data += piece
        return data


def pack(value: Any, other: Callable[[Any], list[Any]]) -> Any:
    """Convert a value to JSON; `other` packs values that are not plain. An instance of a subclass is not plain.

    Arrays and scalars of NumPy are plain too.
    """

    def each(values: Any) -> list[Any]:
        return [pack(v, other) for v in values]

    kind: Any = type(value)
    if value is None or kind in (bool, str, float):
        return value
    if kind is int:
        return ["int", hex(value)]
    if kind in (list, tuple, set, frozenset):
        return [kind.__name__, each(value)]
    if kind is dict:
        return ["dict", [each(pair) for pair in value.items()]]
    if kind in (bytes, bytearray):
        return [kind.__name__, value.hex()]
    if kind is complex:
        return ["complex", value.real, value.imag]
    if kind is range:
        return ["range", hex(value.start), hex(value.stop), hex(value.step)]
    if kind.__module__ == "fractions" and kind.__name__ == "Fraction":
        return ["Fraction", hex(value.numerator), hex(value.denominator)]
    if kind.__module__ == "decimal" and kind.__name__ == "Decimal":
        return ["Decimal", str(value)]
    if kind.__module__ == "datetime" and kind.__name__ in DATES and getattr(value, "tzinfo", None) is None:
        return ["datetime", kind.__name__, _date_fields(value)]
    if kind.__module__ == "collections" and kind.__name__ == "deque":
        return ["deque", each(value), value.maxlen]
    if kind.__module__ == "numpy" and _DTYPE.fullmatch(getattr(getattr(value, "dtype", None), "str", "")):
        return ["numpy", value.dtype.str, list(value.shape), value.tobytes().hex()]
    return other(value)


def _date_fields(value: Any) -> list[int]:
    return [getattr(value, field) for field in DATES[type(value).__name__]]


def unpack(data: Any, other: Callable[[list[Any]], Any]) -> Any:
    """Convert JSON to a value; `other` unpacks references.

    Raises:
        HungUp: the data is not a value.
    """
    try:
        return _unpack(data, other)
    except (ValueError, TypeError, KeyError, IndexError, ArithmeticError, RecursionError, ImportError) as error:
        raise HungUp(f"not a value: {type(error).__name__}") from None


def _unpack(data: Any, other: Callable[[list[Any]], Any]) -> Any:
    if not isinstance(data, list):
        if data is None or isinstance(data, (bool, str, float)):
            return data
        raise ValueError("not tagged")
    tag, *rest = data
    if tag in ("list", "tuple", "set", "frozenset"):
        kind: Any = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[tag]
        return kind(_unpack(value, other) for value in rest[0])
    if tag == "dict":
        return {_unpack(key, other): _unpack(value, other) for key, value in rest[0]}
    if tag == "int":
        return int(rest[0], 16)
    if tag in ("bytes", "bytearray"):
        return (bytes if tag == "bytes" else bytearray).fromhex(rest[0])
    if tag == "complex":
        return complex(float(rest[0]), float(rest[1]))
    if tag == "range":
        return range(*(int(text, 16) for text in rest))
    if tag == "Fraction":
        from fractions import Fraction

        return Fraction(int(rest[0], 16), int(rest[1], 16))
    if tag == "Decimal":
        from decimal import Decimal

        return Decimal(rest[0])
    if tag == "datetime":
        import datetime

        fields = {field: int(number) for field, number in zip(DATES[rest[0]], rest[1], strict=True)}
        return getattr(datetime, rest[0])(**fields)
    if tag == "deque":
        from collections import deque

        return deque((_unpack(value, other) for value in rest[0]), rest[1])
    if tag == "numpy" and _DTYPE.fullmatch(rest[0]):
        import numpy  # one of the packages, so both sides have it

        return numpy.frombuffer(bytes.fromhex(rest[2]), rest[0]).reshape(rest[1]).copy()[()]
    return other(data)
