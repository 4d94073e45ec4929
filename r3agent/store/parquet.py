"""Shards in Parquet, compressed with zstd: one row a line, in the order of the lines; needs `pyarrow`."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from r3agent._util.files import disk_errors
from r3agent._util.imports import require_extra
from r3agent.errors import ConfigError, RecordError

ENDING = ".parquet"

COLUMN = "line"
"""Column with the JSON of each record."""

GROUP_BYTES, GROUP_ROWS = 4 << 20, 1024
"""Size of a row group, the least that is read."""


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
    schema = pyarrow.schema([(COLUMN, pyarrow.string())])
    with disk_errors(path, pyarrow.ArrowException):
        try:
            with partial.open("wb") as file:
                # Lines differ, so a dictionary of them would be a copy.
                with parquet.ParquetWriter(file, schema, compression="zstd", use_dictionary=False) as writer:
                    for group in _groups(lines):
                        n += len(group)
                        writer.write_table(pyarrow.table([pyarrow.array(group, pyarrow.string())], schema))
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    return n


def read_lines(path: Path, *, first: int = 0) -> Iterator[bytes]:
    """Read the lines of a file, from row `first` on.

    Raises:
        ConfigError: `pyarrow` is not installed.
        RecordError: the file is damaged, or no shard.
    """
    for start, group in _row_groups(path, lambda end: first < end):
        yield from map(_line, group.slice(max(0, first - start)))


def read_rows(path: Path, rows: Iterable[int]) -> Iterator[bytes]:
    """Read the lines of some rows, in ascending order; a row group is decompressed once for all of them.

    Raises:
        ConfigError, RecordError: as `read_lines`.
    """
    left = deque(rows)
    for start, group in _row_groups(path, lambda end: bool(left) and left[0] < end):
        while left and left[0] < start + len(group):
            yield _line(group[left.popleft() - start])


def _row_groups(path: Path, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Any]]:
    """Yield the first row and the lines of each row group that is wanted, given the row after its last."""
    require_extra("pyarrow", "data")
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            if COLUMN not in file.schema_arrow.names:
                raise RecordError(f"{path}: it has no column {COLUMN!r}, so it is no shard; move it out of the store")
            start = 0
            for i in range(file.num_row_groups):
                n = file.metadata.row_group(i).num_rows
                if wanted(start + n):
                    group: Any = file.read_row_group(i, columns=[COLUMN]).column(0)
                    yield start, group
                start += n
    except (pyarrow.ArrowException, OSError) as error:
        raise RecordError(f"{path}: damaged ({error}); restore it from a copy, or move it out of the store") from error


def _line(row: Any) -> bytes:
    return row.as_buffer().to_pybytes() if row.is_valid else b""


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
