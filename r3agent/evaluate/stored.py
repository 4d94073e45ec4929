"""The comparisons of a run, one file each: which versions, on which split, and under which settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import model_validator

from r3agent._util.files import write_atomically
from r3agent.evaluate import Comparison
from r3agent.records.trajectory import Record, known_schema
from r3agent.store.registry import read_record


class StoredComparison(Record):
    """A file of `eval/`: two versions compared, and under which settings."""

    schema_version: int = 1
    settings: str
    """Fingerprint of what decides which episodes were compared."""
    comparison: Comparison

    @model_validator(mode="before")
    @classmethod
    def _known_schema(cls, data: Any) -> Any:
        return known_schema(data, 1)


def store_comparison(path: Path, comparison: Comparison, settings: str) -> None:
    stored = StoredComparison(settings=settings, comparison=comparison)
    write_atomically(path, stored.model_dump_json(indent=2))


def stored_comparison(path: Path, settings: str) -> Comparison | None:
    """What was stored there, if it was under these settings.

    Raises:
        RecordError, SchemaVersionError: the file is damaged, or of another version of r3agent.
    """
    stored = read_record(StoredComparison, path) if path.exists() else None
    return stored.comparison if stored is not None and stored.settings == settings else None
