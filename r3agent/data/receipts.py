"""Receipts of what was forgotten: ids, files and hashes, and none of the text.

A receipt is written before the first file is replaced, and finished after the last. One that is not finished is of a
process that was killed; the next `forget` goes on with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field

from r3agent._util.files import write_atomically
from r3agent.records.record import Record, VersionedRecord, new_id
from r3agent.store.reading import read_record

FOLDER = "forgotten"
"""Folder of a run directory, or of a store that is in none, with the receipts."""


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class Rewritten(Record):
    """A file from which lines were taken."""

    path: str
    lines: int
    """Number of lines that were taken out."""
    sha256_before: str
    sha256_after: str


class Receipt(VersionedRecord):
    """Receipt of `forget`."""

    schema_version: Literal[1] = 1
    receipt_id: str = Field(default_factory=new_id)
    selected_by: str
    """`episode`, `pattern`, or `metadata` with the key."""
    selection_sha256: str
    """Hash of the ids, of the pattern, or of KEY=VALUE."""
    episodes: tuple[str, ...]
    """Ids of the episodes, with those that branched off them."""
    parts: tuple[str, ...] = ()
    """Hashes of lines that were no records, such as a part of one that a crash left, and had some of it."""
    begun_at: str = Field(default_factory=utc_now)
    finished_at: str | None = None
    """`None` if files are left, because the process was killed; the next `forget` goes on."""
    files: tuple[Rewritten, ...] = ()
    trained: dict[str, tuple[str, ...]] = {}
    """Versions that were trained on some of them, with their ids. Weights are not changed."""

    def with_file(self, file: Rewritten) -> Receipt:
        earlier = [other for other in self.files if other.path != file.path]
        same = [other for other in self.files if other.path == file.path]
        if same and same[0].sha256_after == file.sha256_before:  # replaced twice, because lines came meanwhile
            file = file.model_copy(update={"lines": file.lines + same[0].lines, "sha256_before": same[0].sha256_before})
        return self.model_copy(update={"files": (*earlier, file)})


def write_receipt(root: Path, receipt: Receipt) -> None:
    """Write or replace a receipt.

    Raises:
        ConfigError: it cannot be written.
    """
    write_atomically(root / FOLDER / f"{receipt.receipt_id}.json", receipt.model_dump_json(indent=2) + "\n")


def receipts(root: Path) -> Iterator[Receipt]:
    """Read the receipts of a run directory or store.

    Raises:
        RecordError, SchemaVersionError: one cannot be read.
    """
    for path in sorted((root / FOLDER).glob("*.json")):
        yield read_record(Receipt, path)
