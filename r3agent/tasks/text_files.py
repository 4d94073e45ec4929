"""Rows of JSON and CSV files as people have them: packed, from Windows, from a spreadsheet or from pandas.

CSV cells stay the text that they are. Columns without a name are dropped if they are empty, and named as pandas names
them if they come first, where pandas writes its index.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import re
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from r3agent._util.files import decode
from r3agent._util.imports import require_extra
from r3agent._util.messages import shorten
from r3agent.errors import ConfigError
from r3agent.tasks.json_values import json_stream

ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""Supported file name endings, in any case, which may be followed by one of `PACKED`."""

MAX_CELL = 2**31 - 1

PART = 1 << 20
"""Size of the parts of a file that are read."""

DELIMITERS = (",", ";", "\t", "|")

INDEX = "Unnamed: 0"
"""Name that pandas gives to its index if it reads it back."""


class Row(NamedTuple):
    """Row of a data source, with its location."""

    where: str
    values: dict[str, Any]
    number: int = 0
    """Number of its line, or of the row where rows are no lines."""


def _zstd(file: Any) -> Any:
    require_extra("pyarrow", "data")
    import pyarrow

    return pyarrow.CompressedInputStream(file, "zstd")


PACKED = (".gz", ".bz2", ".xz", ".zst")
"""Endings of the names of compressed files."""

COMPRESSIONS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
    b"\x28\xb5\x2f\xfd": _zstd,
}
"""Compression by the bytes that a file begins with: browsers and stores unpack files, or pack them, under one name."""


def ending(name: str) -> str:
    """Return the one of `ENDINGS` that a file's name has, e.g. `.csv` of `Sums.CSV.gz`; empty if it has none."""
    name = name.lower()
    bare = next((name.removesuffix(packed) for packed in PACKED if name.endswith(packed)), name)
    return next((known for known in ENDINGS if bare.endswith(known)), "")


def unpacked(content: bytes) -> bytes:
    """Decompress the content of a file if it is compressed, whatever its name says."""
    return _opened(io.BytesIO(content), content).read()


def byte_parts(path: Path) -> Generator[bytes]:
    """Read a file in parts, decompressed as `unpacked` does."""
    with path.open("rb") as file:
        beginning = file.read(max(map(len, COMPRESSIONS)))
        file.seek(0)
        opened = _opened(file, beginning)
        while part := opened.read(PART):
            yield part


def _opened(file: Any, beginning: bytes) -> Any:
    unpack = next((unpack for mark, unpack in COMPRESSIONS.items() if beginning.startswith(mark)), None)
    return unpack(file) if unpack else file


def file_text(content: bytes, name: str, encoding: str) -> str:
    """Decode the text of a file.

    Raises:
        ConfigError: it has another encoding, or NUL bytes.
    """
    remedy = "save it as UTF-8, or set task.params.encoding, e.g. cp1252 for a file of Windows"
    text = decode(content, name, encoding=encoding, remedy=remedy)
    if (at := text.find("\0")) >= 0:
        line = text.count("\n", 0, at) + 1
        raise ConfigError(f"{name}:{line} has a NUL byte; if it is UTF-16, set task.params.encoding, or else remove it")
    return text


def json_rows(text: str, name: str) -> Iterator[Row]:
    """Yield the objects of JSON lines, of an array, or of the only list of objects in a `.json` file's object."""
    values = list(json_stream(text, name))
    sign = ":"
    if len(values) == 1 and (inner := _list_of(values[0][1], name)) is not None:
        sign, values = " row ", list(enumerate(inner, start=1))
    for number, value in values:
        where = f"{name}{sign}{number}"
        if not isinstance(value, dict):
            raise ConfigError(f"{where} is {shorten(value)}; every row must be an object")
        yield Row(where, value, number)


def _list_of(value: Any, name: str) -> list[Any] | None:
    """Return the rows of a file's only value; `None` if the value is a row itself."""
    if isinstance(value, list):
        return value
    if ending(name) != ".json" or not isinstance(value, dict):
        return None
    lists = {key: inner for key, inner in value.items() if isinstance(inner, list) and _are_rows(inner)}
    if len(lists) == 1:
        return next(iter(lists.values()))
    found = f" with the lists {', '.join(lists)}" if lists else ""
    raise ConfigError(
        f"{name} is a JSON dict{found}; it must be an array of objects, or name it .jsonl if it is one row; pandas "
        'writes rows with to_json(orient="records")'
    )


def _are_rows(values: list[Any]) -> bool:
    """Return True for a list of objects that are not the turns of one conversation."""
    return bool(values) and all(isinstance(v, dict) and not v.keys() & {"role", "from"} for v in values)


def csv_rows(text: str, name: str, delimiter: str) -> tuple[tuple[str, ...], list[Row]]:
    """Return the columns and the rows of a CSV file.

    Args:
        delimiter: separator of cells; default the one that divides all lines alike.

    Raises:
        ConfigError: a line has more or fewer cells than the header, or the header does not name each column once.
    """
    if stated := re.match(r"sep=(.)\r?\n", text, re.IGNORECASE):  # Excel's own line
        delimiter = delimiter or stated[1]
        text = f"\n{text[stated.end() :]}"
    delimiter = delimiter or ("\t" if ending(name) == ".tsv" else _delimiter(text))
    try:
        (_, header), *lines = _lines(text, delimiter) or [(0, [])]
    except csv.Error as error:
        raise ConfigError(f"{name}: {error}; double the quotes inside a cell, or set task.params.delimiter") from error
    header = [cell.strip() for cell in header]
    if header[:1] == [""] and any(cells[0] for _, cells in lines):
        header[0] = INDEX
    columns = {column: i for i, column in enumerate(header) if column}
    if not columns or len(columns) < sum(map(bool, header)):
        raise ConfigError(f"{name}: the first line must name every column once, and is {header}")
    for number, cells in lines:
        named = [*header[: len(cells)], *[""] * (len(cells) - len(header))]
        if any(header[len(cells) :]) or any(cell and not column for cell, column in zip(cells, named, strict=True)):
            raise ConfigError(
                f"{name}:{number} has {len(cells)} cells, and the header the columns {', '.join(columns)}; quote cells "
                f"that have {delimiter!r} in them, or set task.params.delimiter"
            )
    named = [(number, {column: cells[i] for column, i in columns.items()}) for number, cells in lines]
    return tuple(columns), [Row(f"{name}:{number}", values, number) for number, values in named]


def _delimiter(text: str) -> str:
    """Return the delimiter in the header; of several, the one that divides all lines into as many cells."""

    def fit(delimiter: str) -> tuple[bool, int]:
        try:
            widths = [len(cells) for _, cells in _lines(text, delimiter)]
        except csv.Error:
            return False, 0
        return len(set(widths)) == 1, widths[0]

    found = [delimiter for delimiter in DELIMITERS if delimiter in _header(text)]
    return found[0] if len(found) == 1 else max(found, key=fit, default=",")


def _header(text: str) -> str:
    return re.split(r"[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]


def _lines(text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """Return the cells of each line that is not empty, with the line's number."""
    first = next(csv.reader([_header(text)], delimiter=delimiter), [])
    is_spaced = len(first) > 1 and all(cell.startswith(" ") for cell in first[1:])
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=is_spaced)
    limit = csv.field_size_limit(MAX_CELL)
    try:
        found, number = list[tuple[int, list[str]]](), 1
        for cells in reader:
            if any(cell.strip() for cell in cells):
                found.append((number, cells))
            number = reader.line_num + 1
        return found
    finally:
        csv.field_size_limit(limit)
