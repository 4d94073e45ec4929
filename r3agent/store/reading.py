"""Reading of records from files, line by line; a line that is no record is left out and reported."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

from r3agent._util.messages import explain
from r3agent.errors import RecordError, SchemaVersionError
from r3agent.records.record import Record, VersionedRecord
from r3agent.records.trajectory import Trajectory
from r3agent.store import parquet
from r3agent.store.lines import ChecksumError, decode
from r3agent.store.packed import Line, Packed

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=VersionedRecord)
S = TypeVar("S", bound=Record)
T = TypeVar("T")

CHECK = "r3agent data check"
"""Command that lists and repairs what cannot be read."""

LABELS = "labels"
"""Folder of a store with the file of its labels."""


class Unreadable(NamedTuple):
    """A line of a file that is no record."""

    path: Path
    line: int
    reason: str
    torn: bool = False
    """True for the part of a line that a crash left."""

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}"

    @property
    def remedy(self) -> str:
        store = self.path.parent.parent if self.path.parent.name == LABELS else self.path.parent
        return f"`{CHECK} {store}` lists and repairs such lines"


def parse_lines(path: Path, kind: type[R]) -> Iterator[R | Unreadable]:
    """Read each line of a file, in order of writing.

    Raises:
        SchemaVersionError: another version of r3agent wrote it.
    """
    for number, line in enumerate(stored_lines(path), start=1):
        if isinstance(line, Packed) or not line.isspace():
            yield parse(line, kind, path, number)


def parse(line: Line, kind: type[R], path: Path, number: int) -> R | Unreadable:
    """Read a line.

    Raises:
        SchemaVersionError: another version of r3agent wrote it.
    """
    decoded: Any = decode  # of a trajectory, which `kind` is then
    try:
        return decoded(line) if kind is Trajectory else kind.of_line(bytes(line))
    except SchemaVersionError as error:
        raise SchemaVersionError(f"{path}:{number}: {error}") from None
    except ChecksumError as error:
        return Unreadable(path, number, str(error))
    except ValidationError as error:
        name = kind.__name__.removeprefix("Span").lower()
        return Unreadable(path, number, f"not a {name}: {explain(error, kind)}")
    except ValueError:
        return Unreadable(path, number, f"torn line skipped ({len(bytes(line))} bytes)", torn=True)


def lines_of(path: Path) -> Iterator[bytes]:
    """Read the lines of a file of a store: a shard in JSON Lines or Parquet, a copy of one, or the labels."""
    return map(bytes, stored_lines(path))


def stored_lines(path: Path) -> Iterator[Line]:
    """Read the lines of a file as it has them, which takes less time than `lines_of` from Parquet."""
    if parquet.ENDING in path.suffixes:  # also of `NAME.parquet.bak`
        yield from parquet.read_rows(path)
    else:
        with path.open("rb", buffering=1 << 20) as lines:  # a line may have 100 KB
            yield from lines


def records(
    paths: Iterable[Path],
    kind: type[R],
    *,
    strict: bool = False,
    unreadable: list[Unreadable] | None = None,
) -> Iterator[R]:
    """Read all records of some files, in order of writing; leave out and report lines that are none.

    Args:
        strict: raise at the first complete line that is no record.
        unreadable: receives the complete lines that are no record, instead of the log.

    Raises:
        RecordError: a complete line is not such a record, and `strict`.
        SchemaVersionError: another version of r3agent wrote it.
    """
    lines = (record for path in paths for record in parse_lines(path, kind))
    return readable(lines, strict=strict, unreadable=unreadable)


def readable(
    lines: Iterable[T | Unreadable], *, strict: bool = False, unreadable: list[Unreadable] | None = None
) -> Iterator[T]:
    """Leave out and report lines that are no records, as `records` does."""
    found: list[Unreadable] = [] if unreadable is None else unreadable
    for line in lines:
        if not isinstance(line, Unreadable):
            yield line
        elif line.torn:
            logger.warning("%s", line)
        elif strict:
            raise RecordError(f"{line}; {line.remedy}")
        else:
            found.append(line)
    if found and unreadable is None:
        logger.warning("%s", report_left_out(found))


def report_left_out(unreadable: Sequence[Unreadable]) -> str:
    """Report lines that are left out."""
    n, first = len(unreadable), unreadable[0]
    lines = f"{n} lines are no records and are" if n > 1 else "a line is no record and is"
    return f"{first}: {lines} left out; {first.remedy}"


def read_record(kind: type[S], path: Path) -> S:
    """Read a file that contains one record.

    Raises:
        RecordError: the file cannot be read.
        SchemaVersionError: another version of r3agent wrote it.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except SchemaVersionError as error:
        raise SchemaVersionError(f"{path}: {error}") from None
    except (ValidationError, OSError) as error:
        raise RecordError(
            f"{path} is not a {kind.__name__}: {explain(error, kind)}; restore it from a copy of the run"
        ) from error
