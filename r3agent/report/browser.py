"""Trajectories of a page: an index in columns, the texts that are searched, and the bodies in compressed chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from r3agent.records.credit import credit_label
from r3agent.records.trajectory import Trajectory
from r3agent.report.encoding import dumps, packed

CHUNK = 256 << 10
"""Characters of the bodies that are compressed together: the page decodes a chunk to open one trajectory."""

SEARCHED = 24 << 20
"""Characters of the texts that are searched, in all; each trajectory has an equal part of them."""

LONGEST = 20_000
"""Characters that are searched in one trajectory."""

LABELS = ("attempt", "reflect", "retry", "blind_retry")
OUTCOMES = ("failed", "passed", "errored", "unlabelled")


class Browser:
    """Index, texts and bodies, in order of addition."""

    def __init__(self) -> None:
        self._columns: dict[str, list[Any]] = {
            name: [] for name in ("id", "task", "store", "version", "outcome", "labels", "error", "by", "tokens", "at")
        }
        self._names: dict[str, dict[tuple[str, str], int]] = {
            name: {} for name in ("task", "store", "version", "error")
        }
        self._texts: list[str] = []
        self._firsts: list[int] = []
        self._chunks: list[bytes] = []
        self._open: list[str] = []
        self._size = 0

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def ids(self) -> set[str]:
        """Ids of the trajectories."""
        return {*self._columns["id"]}

    def add(self, store: str, trajectory: Trajectory, body: dict[str, Any]) -> None:
        """Add a trajectory with its body."""
        outcome, other = _outcome(trajectory), store.partition("forgetting/")[2].partition("/")[0]
        error = trajectory.error or next((a_try.error for a_try in trajectory.tries if a_try.error), None)
        labels = {credit_label(trajectory, span) for span in trajectory.spans}
        values = {
            "id": trajectory.trajectory_id,
            "task": self._number("task", trajectory.task.id, other),
            "store": self._number("store", store),
            "version": self._number("version", next(filter(None, trajectory.policy_versions), "unknown")),
            "outcome": OUTCOMES.index(outcome),
            "labels": sum(1 << LABELS.index(label) for label in labels),
            "error": self._number("error", error.kind if error else ""),
            "by": int(any(span.verdict is not None and span.verdict.by is not None for span in trajectory.spans)),
            "tokens": sum(span.completion_tokens or 0 for span in trajectory.spans),
            "at": trajectory.created_at,
        }
        for name, value in values.items():
            self._columns[name].append(value)
        self._texts.append(_searched(trajectory))
        self._append(dumps(body))

    def index(self) -> dict[str, Any]:
        """Return the index: a list for each column, and the names that its numbers stand for."""
        return {
            "columns": self._columns,
            "names": {name: [value for value, _ in numbers] for name, numbers in self._names.items()},
            "outcomes": OUTCOMES,
            "labels": LABELS,
            "chunks": self._firsts,
            "searched": self._part,
        }

    def texts(self) -> list[str]:
        """Return the text of each trajectory that is searched, its end cut off where all together are too long."""
        return [text[: self._part] for text in self._texts]

    def chunks(self) -> Sequence[bytes]:
        """Return the chunks of the bodies, each a JSON array, packed."""
        self._close()
        return self._chunks

    @property
    def _part(self) -> int:
        return min(LONGEST, SEARCHED // max(1, len(self._texts)))

    def _number(self, name: str, value: str, other: str = "") -> int:
        """Number a name; the same id of a task is another task in another source."""
        return self._names[name].setdefault((value, other), len(self._names[name]))

    def _append(self, body: str) -> None:
        if not self._open:
            self._firsts.append(len(self._texts) - 1)
        self._open.append(body)
        self._size += len(body)
        if self._size >= CHUNK:
            self._close()

    def _close(self) -> None:
        if self._open:
            self._chunks.append(packed(f"[{','.join(self._open)}]"))
            self._open, self._size = [], 0


def _outcome(trajectory: Trajectory) -> str:
    if trajectory.error is not None:
        return "errored"
    return {True: "passed", False: "failed", None: "unlabelled"}[trajectory.passed]


def _searched(trajectory: Trajectory) -> str:
    parts = [trajectory.trajectory_id, trajectory.task.id]
    parts += [str(message.get("content") or "") for message in trajectory.task.messages]
    for span in trajectory.spans:
        parts += [span.text, *(str(call) for call in span.tool_calls)]
        parts += [span.verdict.feedback] if span.verdict and span.verdict.feedback else []
    parts += [trajectory.error.message] if trajectory.error else []
    return "\n".join(dict.fromkeys(parts))[:LONGEST]
