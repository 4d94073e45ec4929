"""Records in JSON Lines: one a line, a torn one skipped and reported."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import orjson
from pydantic import ValidationError

from r3agent.errors import RecordError, SchemaVersionError
from r3agent.records.trajectory import Record

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Record)


def records(path: Path, kind: type[R], *, containing: bytes = b"") -> Iterator[R]:
    """Every record of a file, in order of writing.

    Args:
        containing: lines without it are passed over unread.

    Raises:
        RecordError: a whole line is not such a record.
        SchemaVersionError: another version of r3agent wrote it.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if containing not in line:
                continue
            where = f"{path}:{number}"
            try:
                data = orjson.loads(line)
            except orjson.JSONDecodeError:
                logger.warning("%s: torn line skipped (%d bytes)", where, len(line))
                continue
            try:
                yield kind.model_validate(data)
            except SchemaVersionError as error:
                raise SchemaVersionError(f"{where}: {error}") from None
            except ValidationError as error:
                first = error.errors()[0]
                key = ".".join(map(str, first["loc"]))
                raise RecordError(
                    f"{where}: not a {kind.__name__.lower()}: {key}: {first['msg']}; "
                    "remove the line or restore the file"
                ) from error
