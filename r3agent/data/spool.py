"""Values on disk, in a temporary database in the directory that `TMPDIR` names, so that few are in memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

from r3agent._util.files import disk_errors
from r3agent.records.json_values import json_bytes, json_value, parse_json

CACHE_KIB = 16 << 10
"""Memory of the database."""

TABLES = """
CREATE TABLE item (number INTEGER PRIMARY KEY, kind TEXT, key TEXT, value BLOB);
CREATE INDEX kinds ON item (kind);
CREATE INDEX places ON item (kind, key);
"""


class Spool:
    """Lists of JSON values, by kind and key. It is used in one thread."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def add(self, kind: str, key: str, value: Any = None) -> None:
        """Append a value, as `json_value` converts it."""
        row = kind, key, json_bytes(json_value(value))
        self._database.execute("INSERT INTO item (kind, key, value) VALUES (?, ?, ?)", row)

    def put(self, kind: str, key: str, value: Any) -> None:
        """Set the only value of a key, which keeps its place."""
        row = json_bytes(json_value(value)), kind, key
        if not self._database.execute("UPDATE item SET value = ? WHERE kind = ? AND key = ?", row).rowcount:
            self.add(kind, key, value)

    def has(self, kind: str, key: str) -> bool:
        """Return True if a key has a value."""
        found = self._database.execute("SELECT 1 FROM item WHERE kind = ? AND key = ? LIMIT 1", (kind, key))
        return found.fetchone() is not None

    def last(self, kind: str, key: str) -> Any:
        """Return the last value of a key; `None` if it has none."""
        found = self._database.execute(
            "SELECT value FROM item WHERE kind = ? AND key = ? ORDER BY number DESC LIMIT 1", (kind, key)
        ).fetchone()
        return None if found is None else parse_json(found[0])

    def values(self, kind: str, key: str) -> Iterator[Any]:
        """Yield the values of a key, in order."""
        found = self._database.execute("SELECT value FROM item WHERE kind = ? AND key = ? ORDER BY number", (kind, key))
        return (parse_json(value) for (value,) in found)

    def items(self, kind: str) -> Iterator[tuple[str, Any]]:
        """Yield all keys with their values, in order."""
        found = self._database.execute("SELECT key, value FROM item WHERE kind = ? ORDER BY number", (kind,))
        return ((key, parse_json(value)) for key, value in found)

    def keys(self, kind: str) -> Iterator[str]:
        """Yield each key once, in order of the first value."""
        found = self._database.execute("SELECT key FROM item WHERE kind = ? GROUP BY key ORDER BY min(number)", (kind,))
        return (key for (key,) in found)


@contextmanager
def spooled() -> Generator[Spool]:
    """Open a spool, which is removed in the end.

    Raises:
        ConfigError: its directory cannot be written, or the disk is full.
    """
    with disk_errors(Path(gettempdir()), sqlite3.OperationalError), TemporaryDirectory(prefix="r3agent-") as folder:
        database = sqlite3.connect(Path(folder, "spool"), isolation_level=None)
        try:
            database.executescript(f"PRAGMA journal_mode = OFF; PRAGMA cache_size = -{CACHE_KIB}; {TABLES}")
            database.execute("BEGIN")  # nothing is ever committed, because nobody else reads it
            yield Spool(database)
        finally:
            database.close()
