"""Compare two queries against one database, in a process that can be killed."""

from __future__ import annotations

import json
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from itertools import pairwise
from typing import Any, TypeAlias

Rows: TypeAlias = Sequence[Sequence[Any]]

READS = {20, 21, 33}
"""Actions that the authorizer allows: SQLITE_READ, SQLITE_SELECT, SQLITE_RECURSIVE."""
PRAGMA, FUNCTION = 19, 31
REFUSED_FUNCTIONS = {"load_extension", "fts3_tokenizer"}

LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 1_000_000,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 100_000,
    sqlite3.SQLITE_LIMIT_COLUMN: 500,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 200,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 100,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1_000,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
"""SQLite limits (characters, columns, nodes), far above what tasks need."""
STEPS_BETWEEN_LOOKS = 1000
LAST_STEP_S = 0.5


class Refused(Exception):
    """The query is not allowed, fails, or exceeds a limit."""


def opened(database: str | None, schema: str) -> sqlite3.Connection:
    """Open a file read-only, or create a database in memory; afterwards only reads are allowed."""
    if database is None:
        connection = sqlite3.connect(":memory:", isolation_level=None)
        connection.executescript(schema)
    else:
        connection = sqlite3.connect(database, uri=True, isolation_level=None)
    for pragma in ("query_only = ON", "temp_store = MEMORY", "trusted_schema = OFF"):
        connection.execute(f"PRAGMA {pragma}")
    _connect_virtual_tables(connection)
    connection.text_factory = _text
    for limit, value in LIMITS.items():
        connection.setlimit(limit, value)
    connection.set_authorizer(_authorize)
    return connection


def _connect_virtual_tables(connection: sqlite3.Connection) -> None:
    """Connect to virtual tables, because their first use looks like a write to the authorizer."""
    found = connection.execute("select name from sqlite_master where sql like 'create virtual table%'").fetchall()
    for name in ["json_each", "json_tree", *(name for (name,) in found)]:
        quoted = name.replace('"', '""')
        with suppress(sqlite3.Error):  # not compiled in, or broken: a query that uses it says so
            connection.execute(f'select 1 from "{quoted}" limit 0').fetchall()


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    allowed = (
        action in READS
        or (action == FUNCTION and (second or "").lower() not in REFUSED_FUNCTIONS)
        or (action == PRAGMA and first == "data_version")  # a number, which full-text search reads
    )
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def rows_of(
    connection: sqlite3.Connection, query: str, *, timeout_s: float, max_rows: int, alone: bool = False
) -> tuple[int, Rows]:
    """Return the number of columns, and the rows.

    Args:
        alone: the process may be killed if it exceeds its time.

    Raises:
        Refused: the query is not allowed, fails, or exceeds a limit; the message says which.
    """
    deadline = time.monotonic() + timeout_s
    if alone:  # SQLite checks the clock between steps, and one step may take for ever: this kills the process
        signal.setitimer(signal.ITIMER_REAL, timeout_s + LAST_STEP_S)
    connection.set_progress_handler(lambda: time.monotonic() > deadline, STEPS_BETWEEN_LOOKS)
    try:
        with closing(connection.execute(query)) as cursor:
            if cursor.description is None:
                raise Refused("not a query")
            rows = cursor.fetchmany(max_rows + 1)
            n_columns = len(cursor.description)
    except MemoryError:
        raise Refused("over the memory limit") from None
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:  # also for values of other types
        if time.monotonic() > deadline:
            raise Refused(f"over the limit of {timeout_s:g} s") from None
        raise Refused(str(error)) from None
    if len(rows) > max_rows:
        raise Refused(f"over the limit of {max_rows} rows")
    return n_columns, rows


def same_rows(one: Rows, other: Rows, *, ordered: bool, tolerance: float) -> bool:
    """Return True if two results have the same rows, each the same number of times.

    Two numbers are equal if they are the same, or if one is not an integer and they differ by less than `tolerance`
    times the larger of 1 and their size. Numbers connected by such steps count as one, so their order does not matter.
    """
    if len(one) != len(other):
        return False
    names = _names([cell for row in (*one, *other) for cell in row if isinstance(cell, (int, float))], tolerance)
    named = [[tuple(_key(cell, names) for cell in row) for row in rows] for rows in (one, other)]
    return named[0] == named[1] if ordered else Counter(named[0]) == Counter(named[1])


def _key(cell: Any, names: dict[float, int]) -> tuple[str, Any]:
    if isinstance(cell, (int, float)):
        return "number", names[cell]
    return type(cell).__name__, cell


def _names(numbers: Sequence[float], tolerance: float) -> dict[float, int]:
    """Map equal numbers to the same id."""
    names: dict[float, int] = {}
    inexact = {n for n in numbers if isinstance(n, float)}
    before: float | None = None
    for number in sorted(set(numbers)):
        near = (
            before is not None
            and (number in inexact or before in inexact)
            and number - before <= tolerance * max(1.0, abs(float(number)))
        )
        names[number] = len(names) if not near or before is None else names[before]
        before = number
    return names


def top_level(query: str) -> Iterator[str]:
    """Yield the words of a query outside strings, comments and parentheses, in lower case."""
    word, depth, i = "", 0, 0
    closing_of = {"'": "'", '"': '"', "`": "`", "[": "]"}
    while i < len(query):
        char = query[i]
        end = i + 1
        if query.startswith("--", i) or query.startswith("/*", i):
            mark = "\n" if char == "-" else "*/"
            end = query.find(mark, i + 2)
            end = len(query) if end < 0 else end + len(mark)
        elif char in closing_of:
            end = query.find(closing_of[char], i + 1) + 1 or len(query)
        elif char.isalnum() or char == "_":
            word += char.lower()
            i = end
            continue
        if word and depth == 0:
            yield word
        word = ""
        depth += (char == "(") - (char == ")")
        i = end
    if word and depth == 0:
        yield word


def is_ordered(query: str) -> bool:
    """Return True if the query itself orders its rows."""
    words = list(top_level(query))
    return ("order", "by") in pairwise(words)


def main() -> None:
    """Read a request from stdin; write a line to stdout when the expected rows are known, then the verdict."""
    request: dict[str, Any] = json.load(sys.stdin)
    limits: dict[str, Any] = {"timeout_s": request["timeout_s"], "max_rows": request["max_rows"], "alone": True}
    connection = opened(request["database"], request["schema"])
    expected = request["answer"]
    try:
        if isinstance(expected, str):
            n_columns, rows = rows_of(connection, expected, **limits)
        else:
            n_columns, rows = (len(expected[0]) if expected else None), expected
    except Refused as error:
        print(json.dumps({"broken": f"the expected query: {error}"}))
        return
    print(json.dumps({"expected": len(rows)}), flush=True)
    try:
        found_columns, found = rows_of(connection, request["query"], **limits)
    except Refused as error:
        print(json.dumps({"passed": False, "feedback": str(error)}))
        return
    if n_columns not in (None, found_columns):
        verdict = {"passed": False, "feedback": f"{found_columns} columns, not {n_columns}"}
    elif len(found) != len(rows):
        verdict = {"passed": False, "feedback": f"{len(found)} rows, not {len(rows)}"}
    elif same_rows(found, rows, ordered=request["ordered"], tolerance=request["tolerance"]):
        verdict = {"passed": True}
    else:
        verdict = {"passed": False, "feedback": "other rows, or in another order"}
    print(json.dumps(verdict))
