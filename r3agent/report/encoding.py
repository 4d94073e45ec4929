"""JSON of a report, and its compression."""

from __future__ import annotations

import json
import zlib
from typing import Any

import orjson


def dumps(value: Any) -> str:
    """Write JSON, also of half characters and of numbers with more than 64 bits."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return json.dumps(value, separators=(",", ":"), default=str)


def packed(text: str) -> bytes:
    """Compress text with gzip."""
    packer = zlib.compressobj(wbits=31)
    return packer.compress(text.encode()) + packer.flush()
