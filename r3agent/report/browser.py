"""Trajectories of a page: an index in columns, the texts that are searched, and the bodies in compressed chunks."""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from typing import Any

from r3agent.records.credit import credit_label
from r3agent.records.json_values import parse_json
from r3agent.records.trajectory import Trajectory
from r3agent.records.usage import usage_of
from r3agent.report.encoding import dumps, packed, unpacked

CHUNK = 256 << 10
"""Characters of the bodies that are compressed together: the page decodes a chunk to open one trajectory."""

SEARCHED = 24 << 20
"""Characters of the texts that are searched, in all; each trajectory may have as many of them."""

LONGEST = 20_000
"""Characters that are searched in one trajectory."""

LABELS = ("attempt", "reflect", "retry", "blind_retry")
OUTCOMES = ("failed", "passed", "errored", "unlabelled")


class Browser:
    """Index, texts and bodies, in order of addition.

    Args:
        revision: number of the current reading of the run, with which each chunk that it changes is marked.
    """

    def __init__(self, revision: int = 1) -> None:
        self.revision = revision
        self._columns: dict[str, list[Any]] = {
            name: [] for name in ("id", "task", "store", "version", "outcome", "labels", "error", "by", "tokens", "at")
        }
        self._names: dict[str, dict[tuple[str, str], int]] = {
            name: {} for name in ("task", "store", "version", "error")
        }
        self._places: dict[tuple[str, str], int] = {}
        self._texts: list[str] = []
        self._part = LONGEST
        self._firsts: list[int] = []
        self._marks: list[int] = []
        self._chunks: list[bytes | list[str]] = []
        self._size = 0

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def ids(self) -> set[str]:
        """Ids of the trajectories."""
        return {*self._columns["id"]}

    def put(self, store: str, trajectory: Trajectory, body: dict[str, Any]) -> None:
        """Add a trajectory with its body, or put it in place of its earlier state."""
        key = store, trajectory.trajectory_id
        place = self._places.setdefault(key, len(self._texts))
        if place == len(self._texts):
            self._add(place)
        for name, value in self._row(store, trajectory).items():
            self._columns[name][place] = value
        self._texts[place] = _searched(trajectory)
        chunk = bisect_right(self._firsts, place) - 1
        text = self._opened(chunk)[place - self._firsts[chunk]] = dumps(body)
        self._size += len(text) if chunk == len(self._firsts) - 1 else 0
        self._marks[chunk] = self.revision

    def index(self) -> dict[str, Any]:
        """Return the index: a list for each column, and the names that its numbers stand for."""
        return {
            "columns": self._columns,
            "names": {name: [value for value, _ in numbers] for name, numbers in self._names.items()},
            "outcomes": OUTCOMES,
            "labels": LABELS,
            "chunks": self._firsts,
        }

    def texts(self) -> list[tuple[int, list[str]]]:
        """Return the texts that are searched, by chunk, each with its mark; cut off where all are too long together."""
        part = LONGEST
        while part * len(self._texts) > SEARCHED:
            part //= 2  # so that most additions cut no text anew
        if part != self._part:
            self._part, self._marks = part, [self.revision] * len(self._marks)
        bounds = pairwise([*self._firsts, len(self._texts)])
        return [
            (mark, [text[:part] for text in self._texts[first:end]])
            for mark, (first, end) in zip(self._marks, bounds, strict=True)
        ]

    def chunks(self) -> list[bytes]:
        """Return the chunks of the bodies, each a JSON array, packed."""
        return [self._closed(number) for number in range(len(self._chunks))]

    def _row(self, store: str, trajectory: Trajectory) -> dict[str, Any]:
        outcome, other = _outcome(trajectory), store.partition("forgetting/")[2].partition("/")[0]
        error = trajectory.error or next((a_try.error for a_try in trajectory.tries if a_try.error), None)
        labels = {credit_label(trajectory, span) for span in trajectory.spans}
        return {
            "id": trajectory.trajectory_id,
            "task": self._number("task", trajectory.task.id, other),
            "store": self._number("store", store),
            "version": self._number("version", next(filter(None, trajectory.policy_versions), "unknown")),
            "outcome": OUTCOMES.index(outcome),
            "labels": sum(1 << LABELS.index(label) for label in labels),
            "error": self._number("error", error.kind if error else ""),
            "by": int(any(span.verdict is not None and span.verdict.by is not None for span in trajectory.spans)),
            "tokens": usage_of(trajectory.spans).sampled,
            "at": trajectory.created_at,
        }

    def _number(self, name: str, value: str, other: str = "") -> int:
        """Number a name; the same id of a task is another task in another source."""
        return self._names[name].setdefault((value, other), len(self._names[name]))

    def _add(self, place: int) -> None:
        """Make room for a trajectory."""
        for column in self._columns.values():
            column.append(None)
        self._texts.append("")
        if not self._chunks or self._size >= CHUNK:
            if self._chunks:
                self._closed(len(self._chunks) - 1)
            self._firsts.append(place)
            self._marks.append(self.revision)
            self._chunks.append([])
            self._size = 0
        self._opened(len(self._chunks) - 1).append("")

    def _opened(self, number: int) -> list[str]:
        chunk = self._chunks[number]
        if isinstance(chunk, bytes):
            chunk = self._chunks[number] = [dumps(body) for body in parse_json(unpacked(chunk))]
        return chunk

    def _closed(self, number: int) -> bytes:
        chunk = self._chunks[number]
        if not isinstance(chunk, bytes):
            chunk = self._chunks[number] = packed(f"[{','.join(chunk)}]")
        return chunk


def _outcome(trajectory: Trajectory) -> str:
    if trajectory.error is not None:
        return "errored"
    return {True: "passed", False: "failed", None: "unlabelled"}[trajectory.passed]


def _searched(trajectory: Trajectory) -> str:
    parts = [trajectory.trajectory_id, trajectory.task.id]
    parts += [str(message.get("content") or "") for message in trajectory.task.messages]
    for span in trajectory.spans:
        parts += [span.text, *(str(call) for call in span.tool_calls)]
        parts += [span.verdict.feedback] if span.verdict is not None and span.verdict.feedback else []
    parts += [trajectory.error.message] if trajectory.error else []
    return "\n".join(dict.fromkeys(parts))[:LONGEST]
