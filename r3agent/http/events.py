"""JSON of any server, and the events of streamed responses."""

from __future__ import annotations

import codecs
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import httpx
import orjson

from r3agent.http.body import find_error
from r3agent.records import json_values

LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")
"""End of a line in the received part of a stream; a CR at the end may be the first half of a CRLF."""

ERROR_LINES = (b"event: error", b"event:error", b"error:")
"""Beginnings of the lines that call an event an error; the last is llama.cpp's, with the data."""

NO_DATA = re.compile(rb"|\[DONE\].*|[a-zA-Z-]+")
"""Data of events that say nothing: none, the end of the stream, or a word such as `ping`."""

SSE_FIELDS = (b":", b"event:", b"id:", b"retry:")
"""Beginnings of the lines of a stream without data."""


class ForeignAnswerError(ValueError):
    """A whole answer of something other than the API, such as a web page."""


def parse_json(content: bytes) -> Any:
    """Parse JSON of any server, as `json_values.parse_json`, and with a byte order mark or bytes that are no UTF-8.

    Raises:
        ValueError: it is not JSON, or nested too deeply; a `ForeignAnswerError` if it is HTML or XML.
    """
    content = content.removeprefix(codecs.BOM_UTF8)
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        if content.lstrip().startswith(b"<"):
            raise ForeignAnswerError("it is HTML or XML") from None
        return json_values.parse_json(content.decode(errors="replace"))


async def events(response: httpx.Response) -> AsyncIterator[Any]:
    """Yield each parsed event: its `data:` lines, until a blank one; or the whole content, if it has no such line.

    Raises:
        ValueError: an event, or a content without events, is not JSON.
    """
    data: list[bytes] = []
    other: list[bytes] | None = []
    is_error = False
    async for line in _lines(response):
        if line.startswith(ERROR_LINES):
            is_error = True
        if line.startswith((b"data:", b"error:")):
            data.append(line.partition(b":")[2].strip())
            other = None
        elif line and other is not None:
            other.append(line)
        elif not line:
            for event in _errors(data) if is_error else _parsed(data):
                yield event
            data, is_error = [], is_error and not data
    with suppress(ValueError):  # the last blank line is missing, or the stream broke off within an event
        for event in _parsed(data):
            yield event
    if other and not all(line.startswith(SSE_FIELDS) for line in other):
        try:
            yield parse_json(b"\n".join(other))  # the server ignores `stream`
        except ValueError as error:
            kind = ForeignAnswerError if isinstance(error, ForeignAnswerError) else ValueError
            raise kind(f"it begins with {b' '.join(other)[:80].decode(errors='replace')!r}") from None


def _errors(data: list[bytes]) -> list[Any]:
    """Parse the data of an event that is called an error, in a shape that is known as one."""
    content = b"\n".join(data)
    try:
        error = parse_json(content)
    except ValueError:
        error = content.decode(errors="replace")
    return [error if find_error(error) else {"error": error}] if content else []


def read_events(content: bytes) -> list[Any]:
    """Parse the events of a stream that has been read.

    Raises:
        ValueError: an event is not JSON.
    """
    lines = [line.removeprefix(b"data:").strip() for line in LINE_END.split(content) if line.startswith(b"data:")]
    return [event for line in lines for event in _parsed([line])]


def _parsed(data: list[bytes]) -> list[Any]:
    """Parse the data of an event; some servers end each with one line break, so that they look like one of many."""
    lines = [line for line in data if not NO_DATA.fullmatch(line)]
    try:
        return [parse_json(b"\n".join(lines))] if lines else []
    except ValueError:
        return [parse_json(line) for line in lines]


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """Yield each complete line, ended by LF, CR or CRLF.

    `aiter_lines` would also split at Unicode line separators, which JSON strings may contain.
    """
    rest = b""
    async for content in response.aiter_bytes():
        *lines, rest = LINE_END.split(rest + content)
        for line in lines:
            yield line.removeprefix(codecs.BOM_UTF8)
    yield rest.removesuffix(b"\r").removeprefix(codecs.BOM_UTF8)
