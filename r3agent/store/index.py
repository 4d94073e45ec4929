"""Index of a store: for each shard a file in `index/`, with the place of each record and what is asked of many of them.

A shard's writer appends to its index, which readers complete, or make anew if it is missing or of another shard: no
record is read twice to know what is stored. An index is never needed; it can be deleted at any time.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import orjson

from r3agent._util.files import write_atomically
from r3agent.errors import ConfigError, RecordError, SchemaVersionError
from r3agent.records.trajectory import Trajectory
from r3agent.store import parquet
from r3agent.store.entry import HEADER, Entry, counts_of, index_path, row_of
from r3agent.store.lines import crc_of, decode
from r3agent.store.packed import Line, Packed
from r3agent.store.reading import Unreadable, parse, readable
from r3agent.store.shards import find, latest, replaces, shards

MAX_ROW = 1 << 20
"""Size of a row, at most; an index whose last row is longer is made anew."""


def entries(
    directory: str | Path, *, report: bool = True, prefix: str = "", unreadable: list[Unreadable] | None = None
) -> Iterator[Entry]:
    """List the records of a store or run directory, in order of writing.

    Args:
        report: log what lines are no records, as `read` does.
        prefix: beginning of the names of the shards, as of `read`.
        unreadable: receives the complete lines that are no record, instead of the log.

    Raises:
        ConfigError: there is no such directory.
        SchemaVersionError: another version of r3agent wrote it.
    """
    found = (found for shard in shards(directory, prefix) for found in _of_shard(shard))
    return readable(found, unreadable=unreadable) if report else (entry for entry in found if isinstance(entry, Entry))


def latest_entries(
    directory: str | Path,
    *,
    version: str | None = None,
    accept: Callable[[Trajectory], bool] | None = None,
    prefix: str = "",
) -> dict[str, Entry]:
    """Return the entry of each record that `load` with these arguments would return, by id."""
    found: dict[str, Entry] = {}
    reader = EntryReader()
    for entry in entries(directory, prefix=prefix):
        if version is not None and not {*entry.versions} <= {version}:
            continue
        if accept is not None and not accept(reader.read(entry)):
            continue
        earlier = found.get(entry.trajectory_id)
        if earlier is None or replaces(reader.read(entry), reader.read(earlier)):
            found[entry.trajectory_id] = entry
    return found


def lookup(directory: str | Path, prefix: str) -> Trajectory:
    """Find the trajectory whose id begins with `prefix`, without labels and without parsing other lines.

    Raises:
        ConfigError: there is none (the message suggests the nearest id) or more than one; or `prefix` is empty.
        SchemaVersionError: as `read`.
    """
    likely = latest(found for shard in shards(directory) for found in _named(shard, prefix))
    return find(likely, prefix, str(directory), lambda: {entry.trajectory_id for entry in entries(directory)})


def _named(shard: Path, prefix: str) -> Iterator[Trajectory]:
    """Read the records that the index knows by a name, and, where there is no index yet, whose line contains it."""
    text, (length, end) = orjson.dumps(prefix)[1:-1], _known(shard)
    reader = EntryReader()
    for row in _rows(shard, length):
        entry = _parsed(shard, row) if text in row else None
        if isinstance(entry, Entry) and (entry.episode == prefix or entry.trajectory_id.startswith(prefix)):
            yield reader.read(entry)
    for offset, _, line in _lines_from(shard, end):
        if text in line:
            yield from readable([parse(line, Trajectory, shard, line_number(shard, offset))])


class Place(NamedTuple):
    """Place of a record, with its number in order of writing."""

    number: int
    path: Path
    offset: int
    size: int
    crc: int


class EntryReader:
    """Reader of records by their entries; in Parquet, many are read at the cost of one for each row group."""

    def __init__(self) -> None:
        self._groups = parquet.RowGroups()

    def read(self, entry: Entry) -> Trajectory:
        """Read one record, without labels.

        Raises:
            RecordError: it was changed since.
        """
        place = Place(0, entry.path, entry.offset, entry.size, entry.crc)
        if entry.path.suffix == parquet.ENDING:
            return _read(place, self._groups.line(entry.path, entry.offset))
        return _read(place, _line_at(place.path, place.offset, place.size))


def read_places(places: Iterable[Place]) -> Iterator[Trajectory]:
    """Read the records at places, in order of writing, as an `EntryReader` does."""
    for path, in_shard in groupby(sorted(places), key=attrgetter("path")):
        own = [*in_shard]
        if path.suffix == parquet.ENDING:
            lines = parquet.read_some(path, [place.offset for place in own])
        else:
            lines = (_line_at(path, place.offset, place.size) for place in own)
        yield from (_read(place, next(lines, b"")) for place in own)


def _read(place: Place, line: Line) -> Trajectory:
    if crc_of(line) != place.crc:
        index_path(place.path).unlink(missing_ok=True)
        raise RecordError(f"{place.path}: its index was of another state and is removed; call again to make it anew")
    return decode(line)


def _of_shard(shard: Path) -> Iterator[Entry | Unreadable]:
    length, end = _known(shard)
    for row in _rows(shard, length):
        yield _parsed(shard, row)
    if fresh := list(_scan(shard, end)):
        for row in fresh:
            yield _parsed(shard, row)
        _store(shard, length, fresh)


def _rows(shard: Path, length: int) -> Iterator[bytes]:
    """Read the rows of the first bytes of an index."""
    if length:
        with index_path(shard).open("rb") as index:
            index.readline()
            while index.tell() < length:
                yield index.readline()


def _known(shard: Path) -> tuple[int, int]:
    """Return the length of a shard's index, and the place up to which it goes; 0 if it is of another shard."""
    with suppress(OSError, ValueError, TypeError, StopIteration), index_path(shard).open("rb") as index:
        if index.readline() == HEADER:
            start = max(len(HEADER), index.seek(0, os.SEEK_END) - MAX_ROW)
            index.seek(start)
            tail = index.read()
            tail = tail[: tail.rfind(b"\n") + 1]  # the rest is torn
            offset, size, crc, *_ = orjson.loads(tail.splitlines()[-1] if tail else b"")
            length, end = start + len(tail), offset + size
            if crc_of(_line_at(shard, offset, size)) == crc and _is_unchanged(shard, end):
                return length, end
    return 0, 0


def _is_unchanged(shard: Path, end: int) -> bool:
    """Return False if an indexed line was changed; all are compared if the shard is newer than its whole index."""
    path, written = index_path(shard), shard.stat()
    has_more = shard.suffix != parquet.ENDING and written.st_size > end  # its writer was killed, or is still writing
    if has_more or written.st_mtime_ns <= path.stat().st_mtime_ns:
        return True
    lines = {offset: crc_of(line) for offset, _, line in _lines_from(shard, 0)}
    with path.open("rb") as index:
        index.readline()
        rows = (orjson.loads(row) for row in iter(index.readline, b""))
        same = all(lines.pop(row[0], None) == row[2] for row in rows)
    if same and not lines:
        with suppress(OSError):
            os.utime(path)
        return True
    return False


def _parsed(shard: Path, row: bytes) -> Entry | Unreadable:
    values = orjson.loads(row)
    if len(values) < len(Entry._fields) - 1:
        _, _, _, line, reason, torn = values
        return Unreadable(shard, line, reason, torn)
    return Entry(shard, *values)


def _scan(shard: Path, start: int) -> Iterator[bytes]:
    """Make the rows of a shard's lines from a place on."""
    for offset, size, line in _lines_from(shard, start):
        try:
            found = decode(line)
        except (ValueError, SchemaVersionError):
            found = parse(line, Trajectory, shard, line_number(shard, offset))
        if isinstance(found, Unreadable):
            values = [offset, size, crc_of(line), found.line, found.reason, found.torn]
            yield orjson.dumps(values) + b"\n"
        else:
            yield row_of(found, line, offset, size, counts_of(found))


def _lines_from(shard: Path, start: int) -> Iterator[tuple[int, int, Line]]:
    """Read the places, sizes and contents of the lines from a place on that are not blank."""
    if shard.suffix == parquet.ENDING:
        for row, line in enumerate(parquet.read_rows(shard, first=start), start):
            if isinstance(line, Packed) or line.strip():
                yield row, 1, line
    else:
        with shard.open("rb") as file:
            file.seek(start)
            for line in file:
                if line.strip():
                    yield start, len(line), line
                start += len(line)


def _line_at(shard: Path, offset: int, size: int) -> Line:
    if shard.suffix == parquet.ENDING:
        return next(parquet.read_some(shard, [offset]), b"")
    with shard.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def line_number(shard: Path, offset: int) -> int:
    """Return the number of the line at a place of a shard."""
    if shard.suffix == parquet.ENDING:
        return offset + 1
    with shard.open("rb") as file:
        return file.read(offset).count(b"\n") + 1


def _store(shard: Path, length: int, fresh: list[bytes]) -> None:
    """Add rows to the first bytes of an index, unless the shard is being written, or the directory cannot be."""
    path = index_path(shard)
    with suppress(OSError, ConfigError):
        fd = os.open(shard, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if length:
                with path.open("r+b") as index:
                    index.truncate(length)
                    index.seek(length)
                    index.writelines(fresh)
            else:
                write_atomically(path, b"".join([HEADER, *fresh]))
        finally:
            os.close(fd)
