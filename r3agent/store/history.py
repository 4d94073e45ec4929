"""History of a run's versions: evaluations, decisions of the gate, and each move of the live pointer.

    RUN/policies/history.jsonl    one event a line, appended and never changed

A person's name is there only if it was given: neither the account nor the machine is looked up.
"""

from __future__ import annotations

import operator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import Field

from r3agent.records.record import VersionedRecord
from r3agent.store.append import append_records
from r3agent.store.reading import Unreadable, parse_lines

HISTORY_FILE = "history.jsonl"
GATE, PERSON = "gate", "person"

EventKind: TypeAlias = Literal["evaluated", "passed", "failed", "deployed", "rolled_back"]


class Event(VersionedRecord):
    """Event in the history of a version."""

    schema_version: Literal[1] = 1
    at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    event: EventKind
    """`passed` and `failed` are decisions of the gate; `deployed` and `rolled_back` moved the live pointer here."""
    version: str
    other: str | None = None
    """Version that it was compared with, or that was live before."""
    by: str = GATE
    """`gate`, `person`, or the name that a person gave."""
    reasons: tuple[str, ...] = ()
    """Conditions of the gate, met or not, or the reason that a person gave."""
    file: str | None = None
    """File of the comparison, relative to the run directory."""
    alpha: float | None = Field(default=None, exclude_if=lambda alpha: alpha is None)
    """Two-sided level of the gate's test."""
    blocked_by: tuple[str, ...] = Field(default=(), exclude_if=operator.not_)
    """Signs of reward hacking, and names of other sources, for which the gate's sentinel blocked the version."""


def record_event(policies_dir: Path, event: Event) -> None:
    """Append an event to the history.

    Raises:
        RecordError: it cannot be written.
    """
    append_records(policies_dir / HISTORY_FILE, [event])


def history(policies_dir: Path, version: str | None = None) -> list[Event]:
    """Read the events of a version, or of all, oldest first; lines that a crash left incomplete are left out.

    Raises:
        SchemaVersionError: another version of r3agent wrote one.
    """
    path = policies_dir / HISTORY_FILE
    found = parse_lines(path, Event) if path.exists() else ()
    events = [event for event in found if not isinstance(event, Unreadable)]
    return [event for event in events if version in (None, event.version)]


def last_event(policies_dir: Path, version: str, *kinds: EventKind, **fields: str) -> Event | None:
    """Return the last event of some kinds in the history of a version, with these values of its fields.

    Raises:
        SchemaVersionError: as `history`.
    """
    events = reversed(history(policies_dir, version))
    return next((e for e in events if e.event in kinds and fields.items() <= vars(e).items()), None)
