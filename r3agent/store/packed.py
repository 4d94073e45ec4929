"""Line of a shard in Parquet: its JSON, and the tokens of its spans as numbers in binary.

The JSON has the length of an array in its place. The numbers of all spans follow each other, little-endian, as 32-bit
integers and 64-bit floats; the first bytes of all of them are before the second bytes, which compresses better.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from struct import calcsize, error, unpack_from
from typing import Any, TypeAlias

import orjson

TYPES = {"prompt_token_ids": "<i", "token_ids": "<i", "logprobs": "<d"}
"""Types of the numbers of the arrays of tokens, as `struct` and NumPy name them."""

_NAME = b'"(%b)":' % "|".join(TYPES).encode()
_ARRAY, _LENGTH = re.compile(_NAME + rb"(\[[^\]]+\])"), re.compile(_NAME + rb"(\d+)")


class Packed:
    """Line with its tokens apart; `bytes` makes the line of it.

    Args:
        json: the line with lengths in place of arrays.
        packed: bytes of the numbers of all arrays, by name.
    """

    __slots__ = ("_packed", "_values", "json")

    def __init__(self, json: bytes, packed: Mapping[str, bytes]) -> None:
        self.json, self._packed = json, packed
        self._values: dict[str, Any] = {}

    def __bytes__(self) -> bytes:
        at = dict.fromkeys(TYPES, 0)

        def array(match: re.Match[bytes]) -> bytes:
            start = at[name := match[1].decode()]
            at[name] += int(match[2])
            return b'"%b":%b' % (match[1], orjson.dumps(self.array(name, start, at[name])))

        return _LENGTH.sub(array, self.json)

    def __contains__(self, text: bytes) -> bool:
        """Return True if the JSON has a text."""
        return text in self.json

    def array(self, name: str, start: int, end: int) -> tuple[Any, ...]:
        """Return some of the numbers of a name."""
        if (values := self._values.get(name)) is None:
            values = self._values[name] = _joined(self._packed[name], TYPES[name])
        order, kind = TYPES[name]
        return unpack_from(f"{order}{end - start}{kind}", values, start * values.itemsize)

    def lengths(self) -> dict[str, int]:
        """Return the number of numbers of each name."""
        return {name: len(content) // calcsize(TYPES[name]) for name, content in self._packed.items()}

    def columns(self) -> dict[str, bytes]:
        """Return what a file has of the line, by column."""
        return {"json": self.json, **self._packed}


Line: TypeAlias = bytes | Packed
"""Line as a shard has it."""


def pack(line: bytes) -> Packed | None:
    """Take the tokens out of a line; `None` if it would not be made of them again, byte for byte."""
    import numpy

    values: dict[str, list[Any]] = {name: [] for name in TYPES}

    def length(match: re.Match[bytes]) -> bytes:
        numbers = orjson.loads(match[2])
        values[match[1].decode()] += numbers
        return b'"%b":%d' % (match[1], len(numbers))

    with suppress(ValueError, TypeError, OverflowError, error):  # other values than numbers, or too large ones
        json = _ARRAY.sub(length, line)
        arrays = {name: numpy.array(values[name], kind) for name, kind in TYPES.items()}
        packed = Packed(json, {name: _split(array) for name, array in arrays.items()})
        # null becomes NaN, and NaN null
        if all(numpy.isfinite(array).all() for array in arrays.values()) and bytes(packed) == line:
            return packed
    return None


def _split(values: Any) -> bytes:
    return values.view("u1").reshape(-1, values.itemsize).T.tobytes()


def _joined(content: bytes, kind: str) -> Any:
    import numpy

    parts = numpy.frombuffer(content, "u1").reshape(calcsize(kind), -1)
    return numpy.ascontiguousarray(parts.T).view(kind).reshape(-1)
