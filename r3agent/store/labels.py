"""Labels: verdicts that arrive after an episode is stored, in an append-only file beside the shards.

`load` merges them into the trajectories; the shards never change. The last label of a span wins. Several processes may
label concurrently: each takes the file's lock, terminates a line that a crash left incomplete, and appends one complete
line, which is on disk when the call returns.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
from collections.abc import Hashable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from r3agent._util.checked import checked
from r3agent.errors import ConfigError, RecordError
from r3agent.records.json_values import plain
from r3agent.records.trajectory import Span, Trajectory, Verdict, VersionedRecord, origins
from r3agent.store.reading import LABELS, records
from r3agent.store.shards import lookup, store_at


class SpanLabel(VersionedRecord):
    """A verdict on one span, attached after the episode was stored."""

    schema_version: Literal[1] = 1
    trajectory_id: str
    span_id: str
    passed: Annotated[bool, BeforeValidator(plain)]
    feedback: str | None = None
    by: str
    """Name of the person or system that gave the verdict."""
    overrules: bool | None = None
    """The verifier's own `passed`, if this verdict contradicts it."""
    labelled_at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def over(self, span: Span) -> Span:
        """Return the span with this verdict; `overruled` keeps the verifier's own if the two differ."""
        verdict = Verdict(
            passed=self.passed,
            score=float(self.passed),
            feedback=self.feedback,
            by=self.by,
            overruled=overruled(span.verdict, self.passed),
        )
        return span.model_copy(update={"verdict": verdict})


def overruled(verdict: Verdict | None, passed: bool) -> bool | None:
    """Return the verifier's own `passed` if `passed` contradicts it; `verdict` may be that of an earlier label."""
    if verdict is None:
        return None
    own = verdict.passed if verdict.by is None else verdict.overruled
    return own if own is not None and own != passed else None


@checked
def label(
    directory: str | Path,
    trajectory_id: str | Trajectory,
    *,
    passed: Annotated[bool, BeforeValidator(plain)],
    span_id: str | None = None,
    feedback: str | None = None,
    by: str | None = None,
) -> SpanLabel:
    """Attach a verdict to a stored episode; `load` and training see it from then on.

    It counts instead of the verifier's; `overrules` of the result says if the two differ.

    Args:
        directory: the store, or the run directory that contains it as `trajectories/`.
        trajectory_id: the id, or a unique prefix of it; a `Trajectory` avoids the search in the store.
        span_id: the try to judge; default: the final answer.
        feedback: reason, for people.
        by: author of the verdict; default: the name of the process's user.

    Raises:
        ConfigError: there is no such episode (the message suggests the nearest id), or no such try in it.
        RecordError: the store cannot be read, or the disk is full.
    """
    directory = store_at(directory)
    trajectory = trajectory_id if isinstance(trajectory_id, Trajectory) else lookup(directory, trajectory_id)
    span = _try_of(trajectory, span_id)
    span_label = SpanLabel(
        trajectory_id=trajectory.trajectory_id,
        span_id=span.span_id,
        passed=passed,
        feedback=feedback,
        by=_user() if by is None else by,
        overrules=overruled(span.verdict, passed),
    )
    append_label(directory, span_label)
    return span_label


def _try_of(trajectory: Trajectory, span_id: str | None) -> Span:
    tries = {span.span_id: span for span in trajectory.spans if span.label != "reflect"}
    if span_id is None:
        if trajectory.answer is None:
            raise ConfigError(f"trajectory {trajectory.trajectory_id}: it has no try that a verdict could be on")
        return trajectory.answer
    if span_id not in tries:
        raise ConfigError(
            f"span {span_id!r}: not a try of trajectory {trajectory.trajectory_id}; verdicts are on attempts and "
            f"retries: {', '.join(f'{s.span_id} ({s.label})' for s in tries.values()) or 'it has none'}"
        )
    return trajectory.try_of(tries[span_id]).last


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"uid {os.getuid()}"


def labels_path(directory: str | Path) -> Path:
    """Return the file of a store's labels; its own folder keeps it apart from the shards, `*.jsonl` of the store."""
    return Path(directory) / LABELS / "labels.jsonl"


def append_label(directory: str | Path, label: SpanLabel) -> None:
    """Write a label to disk.

    Raises:
        RecordError: it cannot be written; a partial line is ignored.
    """
    path = labels_path(directory)
    line = label.line()
    try:
        path.parent.mkdir(exist_ok=True)
        with path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_ino != path.stat().st_ino:  # a repair has replaced it
                return append_label(directory, label)
            end = file.seek(0, os.SEEK_END)
            if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
                line = b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RecordError(f"cannot write to {path}: {error.strerror}; what is stored stays") from error


def with_labels(directory: str | Path, trajectories: Iterable[Trajectory]) -> list[Trajectory]:
    """Merge the labels of a store into its trajectories; an answer that branches share has its label in all of them.

    Raises:
        RecordError, SchemaVersionError: the labels cannot be read.
    """
    trajectories = list(trajectories)
    path = labels_path(store_at(directory))
    if not path.is_file():
        return trajectories
    spans = {(t.trajectory_id, span.span_id): span for t in trajectories for span in t.spans}
    origin = origins(trajectories)
    last: dict[Hashable, SpanLabel] = {}
    for label in records([path], SpanLabel):
        if (span := spans.get((label.trajectory_id, label.span_id))) is not None:
            last[origin[label.trajectory_id], *_answer(span)] = label
    labelled = {label.span_id for label in last.values()}

    def with_verdicts(trajectory: Trajectory) -> Trajectory:
        if not any(span.span_id in labelled for span in trajectory.spans):
            return trajectory
        labels = [(last.get((origin[trajectory.trajectory_id], *_answer(span))), span) for span in trajectory.spans]
        return trajectory.changed(spans=tuple(span if label is None else label.over(span) for label, span in labels))

    return [with_verdicts(trajectory) for trajectory in trajectories]


def _answer(span: Span) -> tuple[str, str]:
    return span.span_id, json.dumps(span.message, sort_keys=True, default=str)
