"""Shards in Parquet, compressed with zstd: one row a line, in the order of the lines; needs `pyarrow`.

The tokens of a line are in columns of their own, in binary, where the line can be made of the parts again byte for
byte; any other line is whole in the column `json`, and the others are null. Files of format 1 have all lines whole.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

from r3agent._util.files import disk_errors
from r3agent._util.imports import require_extra
from r3agent.errors import ConfigError, RecordError, SchemaVersionError
from r3agent.store.lines import why_wrong
from r3agent.store.packed import TYPES, Line, Packed, pack

ENDING = ".parquet"

FORMAT, KEY = 2, b"r3agent.format"
"""Format of the files that are written, and the key of a file's format among its metadata; without one it is 1."""

COLUMNS = {1: ("line",), 2: ("json", *TYPES)}
"""Columns of each format; releases that cannot read format 2 refuse a file without `line`."""

GROUP_BYTES, GROUP_ROWS = 4 << 20, 1024
"""Size of a row group, the least that is read."""

KEPT = 8
"""Number of row groups that a reader of single rows keeps."""

T = TypeVar("T")


def write_lines(path: Path, lines: Iterable[bytes], *, replace: bool = False) -> int:
    """Write lines of records, without their ends, into a file; return their number.

    Readers see the whole file or none, also after a crash.

    Args:
        replace: replace a file that exists.

    Raises:
        ConfigError: `pyarrow` is not installed, or the file exists or cannot be written.
    """
    require_extra("pyarrow", "data")
    import pyarrow
    from pyarrow import parquet

    if path.exists() and not replace:
        raise ConfigError(f"{path} exists; name another file, or move it away")
    partial, n = path.with_name(f".{path.name}.partial"), 0
    columns = {"json": pyarrow.string(), **dict.fromkeys(TYPES, pyarrow.binary())}
    schema = pyarrow.schema(columns, metadata={KEY: str(FORMAT)})
    with disk_errors(path, pyarrow.ArrowException):
        try:
            with partial.open("wb") as file:
                with parquet.ParquetWriter(
                    file,
                    schema,
                    compression="zstd",
                    use_dictionary=False,  # lines differ, so one would be a copy of them,
                    write_statistics=False,  # and the least and the largest of each column copies of two
                    write_page_checksum=True,
                ) as writer:
                    for group in _groups(lines):
                        n += len(group)
                        writer.write_table(pyarrow.Table.from_pylist([*map(_row, group)], schema))
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    return n


def read_lines(path: Path) -> Iterator[bytes]:
    """Read the lines of a file, as they were written.

    Raises:
        ConfigError, RecordError, SchemaVersionError: as `read_rows`.
    """
    return map(bytes, read_rows(path))


def read_rows(path: Path, *, first: int = 0) -> Iterator[Line]:
    """Read the lines of a file as it has them, from row `first` on.

    Raises:
        ConfigError: `pyarrow` is not installed.
        RecordError: the file is damaged, or no shard.
        SchemaVersionError: a newer release wrote it.
    """
    for start, columns in _row_groups(path, lambda end: first < end):
        for i in range(max(0, first - start), len(columns[0])):
            yield _line(columns, i)


def read_some(path: Path, rows: Iterable[int]) -> Iterator[Line]:
    """Read the lines of some rows, in ascending order; a row group is decompressed once for all of them.

    Raises:
        ConfigError, RecordError, SchemaVersionError: as `read_rows`.
    """
    left = deque(rows)
    for start, columns in _row_groups(path, lambda end: bool(left) and left[0] < end):
        while left and left[0] < start + len(columns[0]):
            yield _line(columns, left.popleft() - start)


class RowGroups:
    """Reader of rows in any order; it keeps the last row groups, so that rows near each other are decompressed once."""

    def __init__(self) -> None:
        self.n_read = 0
        """Number of row groups that were decompressed."""
        self._files: OrderedDict[tuple[Any, ...], _File] = OrderedDict()
        self._groups: OrderedDict[tuple[Any, ...], Sequence[Any]] = OrderedDict()

    def line(self, path: Path, row: int) -> Line:
        """Read the line of a row; empty if there is none.

        Raises:
            ConfigError, RecordError, SchemaVersionError: as `read_rows`.
        """
        with _reading(path):
            status = path.stat()
            key = path, status.st_ino, status.st_mtime_ns, status.st_size
            if (file := _recent(self._files, key)) is None:
                file = _kept(self._files, key, _File(path))
            if not 0 <= row < file.ends[-1]:
                return b""
            i = bisect_right(file.ends, row)
            if (columns := _recent(self._groups, (*key, i))) is None:
                columns = _kept(self._groups, (*key, i), file.group(i))
                self.n_read += 1
        return _line(columns, row - (file.ends[i - 1] if i else 0))


class _File:
    """Shard with its metadata, which are parsed once."""

    def __init__(self, path: Path) -> None:
        require_extra("pyarrow", "data")
        from pyarrow import parquet

        self._path = path
        with parquet.ParquetFile(path) as file:
            self._columns = _columns(path, file.schema_arrow)
            self._metadata: Any = file.metadata
        sizes = (self._metadata.row_group(i).num_rows for i in range(self._metadata.num_row_groups))
        self.ends = [*accumulate(sizes)] or [0]
        """Row after the last of each row group."""

    def group(self, number: int) -> Sequence[Any]:
        """Decompress the columns of a row group."""
        from pyarrow import parquet

        with parquet.ParquetFile(self._path, metadata=self._metadata, page_checksum_verification=True) as file:
            group: Any = file.read_row_group(number, columns=[*self._columns])
            return [group.column(name) for name in self._columns]


def _row_groups(path: Path, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Sequence[Any]]]:
    """Yield the first row and the columns of each row group that is wanted, given the row after its last."""
    require_extra("pyarrow", "data")
    from pyarrow import parquet

    with _reading(path), parquet.ParquetFile(path, page_checksum_verification=True) as file:
        columns = _columns(path, file.schema_arrow)
        start = 0
        for i in range(file.num_row_groups):
            n = file.metadata.row_group(i).num_rows
            if wanted(start + n):
                group: Any = file.read_row_group(i, columns=[*columns])
                yield start, [group.column(name) for name in columns]
            start += n


@contextmanager
def _reading(path: Path) -> Generator[None]:
    """Convert the errors of a damaged file."""
    require_extra("pyarrow", "data")
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise RecordError(f"{path}: damaged ({error}); restore it from a copy, or move it out of the store") from error


def _recent(kept: OrderedDict[tuple[Any, ...], T], key: tuple[Any, ...]) -> T | None:
    """Return what is kept under a key, as what was used last."""
    if (found := kept.get(key)) is not None:
        kept.move_to_end(key)
    return found


def _kept(kept: OrderedDict[tuple[Any, ...], T], key: tuple[Any, ...], value: T) -> T:
    """Keep a value in place of the one that was not used for longest."""
    kept[key] = value
    if len(kept) > KEPT:
        kept.popitem(last=False)
    return value


def _columns(path: Path, schema: Any) -> Sequence[str]:
    """Return the names of the columns of a file."""
    version = int((schema.metadata or {}).get(KEY, b"1"))
    if version > FORMAT:
        raise SchemaVersionError(
            f"{path}: a shard of format {version}, this r3agent reads formats up to {FORMAT}; open the store with the "
            "version of r3agent that wrote it"
        )
    if missing := {*COLUMNS[version]} - {*schema.names}:
        raise RecordError(f"{path}: it has no column {min(missing)!r}, so it is no shard; move it out of the store")
    return COLUMNS[version]


def _row(line: bytes) -> dict[str, bytes]:
    """Return the columns of a line; one that is not as it was written stays so, to be found."""
    packed = pack(line) if why_wrong(line) is None else None
    return {"json": line} if packed is None else packed.columns()


def _line(columns: Sequence[Any], row: int) -> Line:
    json, *tokens = (column[row] for column in columns)
    if not all(values.is_valid for values in tokens) or not tokens:
        return _content(json)
    return Packed(_content(json), dict(zip(TYPES, map(_content, tokens), strict=True)))


def _content(value: Any) -> bytes:
    return value.as_buffer().to_pybytes() if value.is_valid else b""


def _groups(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    group, size = list[bytes](), 0
    for line in lines:
        group.append(line)
        size += len(line)
        if size >= GROUP_BYTES or len(group) >= GROUP_ROWS:
            yield group
            group, size = [], 0
    if group:
        yield group
