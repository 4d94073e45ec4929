"""Labels from a file of outcomes, such as the complaints of a week: one row for each episode.

A row names the episode, and how it went, as `passed` or as a `score`; it may name one of its tries, and have a note.
Rows that name no stored episode, contradict each other or have no such value are counted and left out. A file can be
given again: what is stored stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from r3agent._util.checked import checked
from r3agent._util.messages import nearest, shorten
from r3agent.errors import ConfigError
from r3agent.records.trajectory import EPISODE, Record, Trajectory
from r3agent.store.labels import (
    LabelScore,
    SpanLabel,
    append_labels,
    default_author,
    judged_span,
    overruled,
    with_labels,
)
from r3agent.store.shards import latest, read, store_at
from r3agent.tasks.rows import file_rows
from r3agent.tasks.text_files import Row

COLUMNS: dict[str, tuple[str, ...]] = {
    "episode": ("episode", "episode_id", "trajectory", "trajectory_id", "id"),
    "passed": ("passed",),
    "score": ("score",),
    "try": ("try", "span", "span_id"),
    "note": ("note", "feedback"),
    "by": ("by",),
}
"""Names of the columns, by meaning; the first that the file has is read."""

WORDS: dict[str, bool] = {
    **dict.fromkeys(("true", "1", "1.0", "yes", "passed"), True),
    **dict.fromkeys(("false", "0", "0.0", "no", "failed"), False),
}
"""Texts of `passed`, in any case; 1.0 and 0.0 are those of tables with gaps."""

MAX_EXAMPLES = 5
"""Number of rows of each kind that a report names."""


class Outcome(NamedTuple):
    """A row of a file of outcomes."""

    where: str
    episode: str
    passed: bool
    score: float
    place: str | None
    note: str | None
    by: str


class OutcomesReport(Record):
    """Report on a file of outcomes."""

    rows: int
    labelled: int
    unchanged: int = 0
    """Rows whose try has this label already."""
    left_out: dict[str, int] = {}
    """Rows that are left out: `unknown` episodes, `doubled` and contradictory ones, and `bad` values."""
    doubled: int = 0
    """Further rows that say the same of a try, of which the first counts."""
    examples: dict[str, tuple[str, ...]] = {}
    """The first rows that are left out, and why."""
    columns_not_read: tuple[str, ...] = ()


class _Rows:
    """Rows that are left out, by reason."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def leave_out(self, reason: str, where: str, why: str) -> None:
        self.counts[reason] += 1
        if len(found := self.examples.setdefault(reason, [])) < MAX_EXAMPLES:
            found.append(f"{where}: {why}")


@checked
def label_outcomes(
    directory: str | Path, file: str | Path, *, passed: bool | None = None, by: str | None = None
) -> OutcomesReport:
    """Label the episodes of a store or run directory with the outcomes in a file of JSON lines, CSV or Parquet.

    Args:
        passed: outcome of every row, where the file has neither `passed` nor `score`, e.g. one of complaints.
        by: author of rows that name none; default: `r3agent.store.labels.default_author`.

    Raises:
        ConfigError: there is no such store or file, or it lacks a column.
        RecordError: the labels cannot be written; none of them is.
    """
    store, outs = store_at(directory), _Rows()
    if not Path(file).expanduser().is_file():
        raise ConfigError(f"--from {file}: there is no such file")
    table = file_rows(str(file))
    columns = _columns(table.columns, str(file), passed)
    rows, author = [*table.rows], by or default_author()
    outcomes = [o for row in rows if (o := _outcome(row, columns, passed, author, outs)) is not None]
    found = _episodes(store, {outcome.episode for outcome in outcomes})
    labels: dict[tuple[str, str], tuple[Outcome, SpanLabel]] = {}
    contradicted: set[tuple[str, str]] = set()
    n_doubled = 0
    for outcome in outcomes:
        if (label := _label(outcome, found, outs)) is None:
            continue
        place = label.trajectory_id, label.span_id
        earlier, _ = labels.setdefault(place, (outcome, label))
        if earlier is outcome:
            continue
        if (earlier.passed, earlier.score) == (outcome.passed, outcome.score) and place not in contradicted:
            n_doubled += 1
            continue
        contradicted.add(place)
        outs.leave_out("doubled", outcome.where, f"contradicts {earlier.where}: neither counts")
    for place in contradicted:
        del labels[place]
        outs.counts["doubled"] += 1
    fresh = [(o, label) for o, label in labels.values() if not _is_stored(o, label, found)]
    scores = [_score(o, label) for o, label in fresh if o.score != float(o.passed)]
    if fresh:
        append_labels(store, [label for _, label in fresh], scores)
    return OutcomesReport(
        rows=len(rows),
        labelled=len(fresh),
        unchanged=len(labels) - len(fresh),
        left_out=dict(outs.counts),
        doubled=n_doubled,
        examples={reason: tuple(found) for reason, found in outs.examples.items()},
        columns_not_read=tuple(column for column in table.columns if column not in columns.values()),
    )


def _columns(named: Iterable[str], file: str, passed: bool | None) -> dict[str, str]:
    """Map the meanings to the columns of a file."""
    named = [*named]
    lower = {name.strip().lower(): name for name in reversed(named)}
    columns = {
        meaning: lower[known]
        for meaning, names in COLUMNS.items()
        for known in [next((name for name in names if name in lower), None)]
        if known is not None
    }
    has = f"{file} has the columns {', '.join(named) or 'none'}"
    if "episode" not in columns:
        raise ConfigError(f"{has}; name that of the episodes' ids 'episode'")
    judged = [meaning for meaning in ("passed", "score") if meaning in columns]
    if passed is None and not judged:
        near = nearest("passed", lower)
        raise ConfigError(f"{has}, and neither passed nor score; {near}or pass --failed or --passed for all rows")
    if passed is not None and judged:
        raise ConfigError(f"{has}: its {judged[0]!r} says how they went; leave --failed and --passed out")
    return columns


def _outcome(row: Row, columns: dict[str, str], passed: bool | None, by: str, outs: _Rows) -> Outcome | None:
    """Read a row; `None` if it is left out."""
    cells = {meaning: row.values.get(column) for meaning, column in columns.items()}
    texts = {meaning: str(cell).strip() for meaning, cell in cells.items() if cell is not None and str(cell).strip()}
    if "episode" not in texts:
        return outs.leave_out("bad", row.where, "names no episode")
    score = _number(texts.get("score"))
    if "score" in texts and (score is None or not 0 <= score <= 1):
        return outs.leave_out("bad", row.where, f"score {shorten(cells['score'])}; it is a number from 0 to 1")
    if "passed" in texts:
        passed = WORDS.get(texts["passed"].lower())
        if passed is None:
            return outs.leave_out("bad", row.where, f"passed {shorten(cells['passed'])}; write true or false")
    elif passed is None:
        if score is None:
            return outs.leave_out("bad", row.where, "has neither passed nor score")
        passed = score >= 1
    if score is None:
        score = float(passed)
    return Outcome(row.where, texts["episode"], passed, score, texts.get("try"), texts.get("note"), texts.get("by", by))


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if isfinite(number) else None


def _episodes(store: Path, names: set[str]) -> dict[str, list[Trajectory]]:
    """Find the episodes with an id, or a name at a gateway, and their labels."""
    found: dict[str, list[Trajectory]] = {}
    named = (t for t in read(store) if not names.isdisjoint(_names(t)))
    for trajectory in with_labels(store, latest(named)):
        for name in _names(trajectory):
            found.setdefault(name, []).append(trajectory)
    return found


def _names(trajectory: Trajectory) -> set[str]:
    name = trajectory.metadata.get(EPISODE)
    return {trajectory.trajectory_id, *([] if name is None else [str(name)])}


def _label(outcome: Outcome, found: dict[str, list[Trajectory]], outs: _Rows) -> SpanLabel | None:
    episodes = found.get(outcome.episode, [])
    if len(episodes) != 1:
        why = f"the name of {len(episodes)} episodes; give an id" if episodes else "no episode of this store"
        return outs.leave_out("bad" if episodes else "unknown", outcome.where, f"{outcome.episode!r} is {why}")
    try:
        span = judged_span(episodes[0], outcome.place)
    except ConfigError as error:
        return outs.leave_out("bad", outcome.where, str(error))
    return SpanLabel(
        trajectory_id=episodes[0].trajectory_id,
        span_id=span.span_id,
        passed=outcome.passed,
        feedback=outcome.note,
        by=outcome.by,
        overrules=overruled(span.verdict, outcome.passed),
        labelled_at=datetime.now(UTC).isoformat(),
    )


def _is_stored(outcome: Outcome, label: SpanLabel, found: dict[str, list[Trajectory]]) -> bool:
    """Return True if the newest label of the try says the same."""
    (trajectory,) = found[outcome.episode]
    verdict = judged_span(trajectory, label.span_id).verdict
    stored = None if verdict is None else (verdict.passed, verdict.score, verdict.feedback, verdict.by)
    return stored == (outcome.passed, outcome.score, outcome.note, outcome.by)


def _score(outcome: Outcome, label: SpanLabel) -> LabelScore:
    keys: dict[str, Any] = label.model_dump(include={"trajectory_id", "span_id", "by", "labelled_at"})
    return LabelScore(**keys, score=outcome.score)
