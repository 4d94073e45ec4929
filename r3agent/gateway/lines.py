"""Lines of an event stream, as they arrive."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from r3agent.http.events import NO_DATA, parse_json

LINE = re.compile(rb"[^\r\n]*(?:\r\n|\n|\r(?!\Z))")
"""Line with its end; a CR at the end of what has arrived may be the first half of a CRLF."""


class Lines:
    """Splitter of the bytes of a stream into lines with their ends."""

    def __init__(self) -> None:
        self.rest = b""
        """Beginning of a line."""

    def split(self, content: bytes) -> Iterator[bytes]:
        """Yield the lines that are complete."""
        content, at = self.rest + content, 0
        for match in LINE.finditer(content):
            at = match.end()
            yield match[0]
        self.rest = content[at:]


def data_of(line: bytes) -> Any:
    """Parse the data of a line; `None` if there is none, or if it is no JSON."""
    if not line.startswith(b"data:"):
        return None
    data = line[5:].strip()
    if NO_DATA.fullmatch(data):
        return None
    try:
        return parse_json(data)
    except ValueError:
        return None
