"""Judge SQL: the answer's query must return the expected rows on SQLite.

The query is the last ```sql block of the reply that is a query, or the whole reply (`fences.py`). `task.info` has the
database, as `{"database": PATH}` or as a `{"schema": SCRIPT}` that creates one in memory, and `{"answer": QUERY}` or
`{"answer": ROWS}`, a list of lists with the cells in the order of the columns.

Two results are equal if they have the same columns, by position, and the same rows, each the same number of times.
Their order matters if the expected query ends with ORDER BY, or with `{"ordered": true}`. Floats are equal within a
tolerance; 1 equals 1.0, a number never equals a text, and NULL only equals NULL. Rows that tie under ORDER BY must come
in the order of the expected result, so avoid ties.

A file is opened as read-only and immutable. Only one statement runs, and SQLite itself refuses everything but reads: no
ATTACH, no PRAGMA, no extension. Functions are allowed, also `json_each` and `json_tree`. It runs in a separate process
with limits on time, rows, memory and the length of a value, which is killed if it exceeds them. SQLite's authorizer and
resource limits confine it, not the sandbox, because it runs no code but SQLite's. The database must be trusted, like
the tests of code.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

from r3agent._util.messages import shorten
from r3agent.errors import ConfigError
from r3agent.records.trajectory import Task, Verdict
from r3agent.verifiers.child import querying
from r3agent.verifiers.fences import blocks_or_all
from r3agent.verifiers.sandbox import Limits, Outcome, run_python

_PROGRAM = Path(querying.__file__).read_text(encoding="utf-8") + "\nmain()\n"
_PYTHON = (sys.executable, "-S")
LANGUAGES = r"\w*sql(?:ite)?\d*|postgres|snowflake|bigquery|duckdb"
QUERIES = ("select", "with", "values")
START_S = 5.0
"""Seconds that the process may take in addition to its two queries."""


class Sql:
    """Judge a query by its rows.

    Args:
        timeout_s: limit for one query.
        row_limit: maximum number of rows in one result.
        memory_mb: address space of the process.
        tolerance: allowed difference of floats, relative to the larger of 1 and their size.

    Raises:
        ConfigError: a setting is invalid.
    """

    def __init__(
        self, *, timeout_s: float = 5.0, row_limit: int = 10_000, memory_mb: int = 512, tolerance: float = 1e-9
    ) -> None:
        if timeout_s <= 0 or row_limit < 1 or not 0 <= tolerance < 1:
            raise ConfigError(f"{timeout_s=}, {row_limit=}, {tolerance=}: more than 0, at least 1, from 0 to below 1")
        wall_s = 2 * timeout_s + START_S
        self.limits = Limits(wall_s=wall_s, cpu_s=int(wall_s) + 1, memory_mb=memory_mb)
        self._settings = {"timeout_s": timeout_s, "max_rows": row_limit, "tolerance": tolerance}

    def __call__(self, task: Task, answer: str) -> Verdict:
        request = {**self._settings, **_expectation(task), "query": query_of(answer)}
        outcome = run_python(_PROGRAM, stdin=json.dumps(request).encode(), limits=self.limits, command=_PYTHON)
        lines = [json.loads(line) for line in outcome.stdout.splitlines()]
        match lines:
            case [{"expected": int()}, {"passed": True}]:
                return Verdict(passed=True, score=1.0)
            case [{"expected": int()}, {"passed": False, "feedback": why}]:
                return Verdict(passed=False, score=0.0, feedback=why)
            case [{"expected": int()}]:
                return Verdict(passed=False, score=0.0, feedback=self._limit(outcome))
            case [{"broken": why}]:
                raise ValueError(why)
            case _:
                why = outcome.stderr[-500:].decode(errors="replace")
                raise ValueError(f"the database or the expected query: {outcome.overrun or ''} {why}")

    def _limit(self, outcome: Outcome) -> str:
        """Return the limit that the answer's query exceeded."""
        if outcome.overrun or outcome.exit_code == -signal.SIGALRM:
            return f"over timeout_s = {self._settings['timeout_s']:g}"
        return f"over memory_mb = {self.limits.memory_mb}, or another limit: ended with {outcome.exit_code}"


def query_of(reply: str) -> str:
    """Return the last SQL block of a reply that is a query, else the last one, or the whole reply without any."""
    blocks = blocks_or_all(reply, LANGUAGES)
    queries = [block for block in blocks if next(querying.top_level(block), "") in QUERIES]
    return [*blocks, *queries][-1].strip()


def _expectation(task: Task) -> dict[str, Any]:
    """Return the database and the expected query or rows.

    Raises:
        ValueError: one is missing, or the rows are not lists of cells.
        FileNotFoundError: the database is not a file.
    """
    info = task.info
    if ("database" in info) == ("schema" in info) or "answer" not in info:
        raise ValueError(f"info has {sorted(info)}: give answer, and database or schema")
    database = None
    if "database" in info:
        path = Path(info["database"]).resolve()
        if not path.is_file():
            raise FileNotFoundError(f"database {path}: no such file")
        database = f"{path.as_uri()}?mode=ro&immutable=1"
    answer = info["answer"]
    if not isinstance(answer, str):
        _check_rows(answer)
    ordered = info.get("ordered", isinstance(answer, str) and querying.is_ordered(answer))
    return {"database": database, "schema": info.get("schema", ""), "answer": answer, "ordered": bool(ordered)}


def _check_rows(rows: object) -> None:
    """Check expected rows.

    Raises:
        ValueError: they are not lists of as many cells each.
    """
    if not isinstance(rows, list):
        raise ValueError(f"answer is {shorten(rows)}: give a query, or a list of rows such as [[1, 'a']]")
    for row in rows:
        if not isinstance(row, list) or not all(isinstance(cell, (str, int, float, type(None))) for cell in row):
            raise ValueError(
                f"answer has the row {shorten(row)}: a row is a list of texts, numbers and nulls, one for each column "
                "in the order of the query's columns, such as [1, 'a']"
            )
        if len(row) != len(rows[0]):
            raise ValueError(f"answer has rows of {len(rows[0])} and of {len(row)} cells: {shorten(row)}")
