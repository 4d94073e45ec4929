"""JSON of a report as text, and its compression."""

from __future__ import annotations

import zlib
from typing import Any

from r3agent.records.json_values import json_bytes


def dumps(value: Any) -> str:
    return json_bytes(value).decode()


def packed(text: str) -> bytes:
    """Compress text with gzip."""
    packer = zlib.compressobj(wbits=31)
    return packer.compress(text.encode()) + packer.flush()


def unpacked(content: bytes) -> str:
    """Decompress what `packed` made."""
    return zlib.decompress(content, wbits=31).decode()
