"""Judge SQL: the answer's query must give the expected rows on SQLite.

The query is the last ```sql block of the reply, or all of it. `task.info` has the database, as `{"database": PATH}` or
as `{"schema": SCRIPT}` that makes one in memory, and the expectation: `{"answer": QUERY}` or `{"answer": ROWS}`.

Two results are equal if they have the same columns, by place, and the same rows, each as often; the order matters where
the expected query ends with ORDER BY, or as `{"ordered": true}` says. Floats are equal within a tolerance; 1 is 1.0,
but no number is a text, and NULL is only NULL. Rows that ORDER BY leaves tied are expected as they came: leave none.

A file is opened read-only and as one that nobody changes. One statement is run, and SQLite itself refuses all but
reading: no ATTACH, no PRAGMA, no extension. It is run in a process of its own, with limits on time, rows, memory and
the length of a value, which is ended when it goes over them. That process is confined by SQLite's authorizer and its
resource limits and not by the sandbox: it runs no code but SQLite's. The database must be trusted, as the tests of code
must be.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

from r3agent.errors import ConfigError
from r3agent.records.trajectory import Task, Verdict
from r3agent.verifiers.child import querying
from r3agent.verifiers.sandbox import Limits, Outcome, run_python
from r3agent.verifiers.text import block_or_all

_PROGRAM = Path(querying.__file__).read_text() + "\nmain()\n"
_PYTHON = (sys.executable, "-S")
START_S = 5.0
"""Seconds that the process may take besides its two queries."""


class Sql:
    """Judge a query by its rows.

    Args:
        timeout_s: for one query.
        row_limit: rows of one result.
        memory_mb: address space of the process.
        tolerance: by which floats may differ, relative to the larger of 1 and their size.

    Raises:
        ConfigError: a setting cannot be.
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
        """Return the limit that ended the process, which is not the expected query's fault."""
        if outcome.overrun or outcome.exit_code == -signal.SIGALRM:
            return f"over timeout_s = {self._settings['timeout_s']:g}"
        return f"over memory_mb = {self.limits.memory_mb}, or another limit: ended with {outcome.exit_code}"


def query_of(reply: str) -> str:
    """Return the last SQL block of a reply, or all of it where there is none."""
    return block_or_all(reply, "sql", "sqlite").strip()


def _expectation(task: Task) -> dict[str, Any]:
    """Return the database and what is expected of it.

    Raises:
        ValueError: one is missing; or the database is no file.
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
    ordered = info.get("ordered", isinstance(answer, str) and querying.is_ordered(answer))
    return {"database": database, "schema": info.get("schema", ""), "answer": answer, "ordered": bool(ordered)}
