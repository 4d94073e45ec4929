"""Labels: verdicts that arrive after an episode is stored, in an append-only file beside the shards.

`load` merges them into the trajectories; the shards never change. The last label of a span wins. Several processes may
label concurrently: each takes the file's lock, terminates a line that a crash left incomplete, and appends one complete
line, which is on disk when the call returns.
"""

from __future__ import annotations

import getpass
import json
import os
import subprocess
from collections.abc import Hashable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from r3agent._util.checked import checked
from r3agent.errors import ConfigError
from r3agent.records.branching import origins
from r3agent.records.json_values import plain
from r3agent.records.trajectory import Span, Trajectory, Verdict, VersionedRecord
from r3agent.store.append import append_records
from r3agent.store.index import lookup
from r3agent.store.reading import LABELS, records
from r3agent.store.shards import store_at
from r3agent.store.verdicts import SpanVerdict, merged, read_layers, verdicts_path, with_verdicts
from r3agent.telemetry import genai


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

    def over(self, span: Span, score: float | None = None) -> Span:
        """Return the span with this verdict; `overruled` keeps the verifier's own if the two differ."""
        verdict = self.verdict(score).model_copy(update={"overruled": overruled(span.verdict, self.passed)})
        return span.model_copy(update={"verdict": verdict})

    def verdict(self, score: float | None) -> Verdict:
        """Return the verdict; its score is 1 or 0 without one of its own."""
        score = float(self.passed) if score is None else score
        return Verdict(passed=self.passed, score=score, feedback=self.feedback, by=self.by)


class LabelScore(VersionedRecord):
    """Score of a label, in a file of its own: without it, the score is 1 or 0."""

    schema_version: Literal[1] = 1
    trajectory_id: str
    span_id: str
    by: str
    labelled_at: str
    """Time of the label, which is its identity together with its span and author."""
    score: float = Field(ge=0, le=1)


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
        span_id: the try to judge: `attempt`, `retry` if there is one, or a span's id; default: the final answer.
        feedback: reason, for people.
        by: author of the verdict; default: `default_author`.

    Raises:
        ConfigError: there is no such episode (the message suggests the nearest id), or no such try in it.
        RecordError: the store cannot be read, or the disk is full.
    """
    directory = store_at(directory)
    trajectory = trajectory_id if isinstance(trajectory_id, Trajectory) else lookup(directory, trajectory_id)
    span = judged_span(trajectory, span_id)
    span_label = SpanLabel(
        trajectory_id=trajectory.trajectory_id,
        span_id=span.span_id,
        passed=passed,
        feedback=feedback,
        by=default_author() if by is None else by,
        overrules=overruled(span.verdict, passed),
    )
    append_labels(directory, [span_label])
    return span_label


def judged_span(trajectory: Trajectory, place: str | None) -> Span:
    """Return the last span of a try, which has its verdict.

    Args:
        place: `attempt` for the first try, `retry` for the only retry, or the id of a span; default: the final answer.

    Raises:
        ConfigError: there is no such try, or more than one.
    """
    if place is None:
        if trajectory.answer is None:
            raise ConfigError(f"trajectory {trajectory.trajectory_id}: it has no try that a verdict could be on")
        return trajectory.answer
    if place == "attempt" and trajectory.attempt is not None:
        return trajectory.attempt
    retries = [a_try.last for a_try in trajectory.tries if a_try.label == "retry"]
    if place == "retry" and len(retries) == 1:
        return retries[0]
    tries = {span.span_id: span for span in trajectory.spans if span.label != "reflect"}
    if place not in tries:
        several = f"one of its {len(retries)} retries" if place == "retry" and retries else "not a try"
        raise ConfigError(
            f"span {place!r}: {several} of trajectory {trajectory.trajectory_id}; verdicts are on attempts and "
            f"retries: {', '.join(f'{s.span_id} ({s.label})' for s in tries.values()) or 'it has none'}"
        )
    return trajectory.try_of(tries[place]).last


def default_author() -> str:
    """Return the author of labels that name none.

    It is `R3AGENT_AUTHOR` of the environment, or else the process's user; for root, which names nobody, git's
    `user.name`, if it is set.
    """
    if given := os.environ.get("R3AGENT_AUTHOR", "").strip():
        return given
    try:
        account = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        account = f"uid {os.getuid()}"
    return (_git_user() if account in ("root", "uid 0") else "") or account


def _git_user() -> str:
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        asked = subprocess.run(["git", "config", "user.name"], capture_output=True, text=True, timeout=5, check=True)
        return asked.stdout.strip()
    return ""


def labels_path(directory: str | Path) -> Path:
    """Return the file of a store's labels; its own folder keeps it apart from the shards, `*.jsonl` of the store."""
    return Path(directory) / LABELS / "labels.jsonl"


def scores_path(directory: str | Path) -> Path:
    """Return the file of the scores of a store's labels."""
    return labels_path(directory).with_name("scores.jsonl")


def label_files(directory: str | Path) -> dict[Path, type[SpanLabel | LabelScore | SpanVerdict]]:
    """Return the files of a store's labels that exist, with their records, each of which names a trajectory."""
    known = {labels_path: SpanLabel, scores_path: LabelScore, verdicts_path: SpanVerdict}
    return {path: kind for at, kind in known.items() if (path := at(directory)).is_file()}


def append_labels(directory: str | Path, labels: Sequence[SpanLabel], scores: Sequence[LabelScore] = ()) -> None:
    """Write labels to disk, all or none; each is a span of telemetry.

    Raises:
        RecordError: they cannot be written.
    """
    if scores:  # first, because a score without its label counts for nothing
        append_records(scores_path(directory), scores)
    append_records(labels_path(directory), labels)
    own = {_key(scored): scored.score for scored in scores}
    for one in labels:
        genai.label(one.trajectory_id, one.span_id, one.verdict(own.get(_key(one))))


def with_labels(directory: str | Path, trajectories: Iterable[Trajectory]) -> list[Trajectory]:
    """Merge the labels of a store into its trajectories, and below them the layers of verdicts.

    An answer that branches share has its label in all of them.

    Raises:
        RecordError, SchemaVersionError: the labels cannot be read.
    """
    return Labels(directory).over(trajectories)


class Labels:
    """The labels of a store and the layers of verdicts, which are read once.

    Raises:
        RecordError, SchemaVersionError: they cannot be read.
    """

    def __init__(self, directory: str | Path) -> None:
        store = store_at(directory)
        self._verdicts = merged(read_layers(store))
        files = [[path] if path.is_file() else [] for path in (labels_path(store), scores_path(store))]
        self._scores = {_key(scored): scored.score for scored in records(files[1], LabelScore)}
        self._labels: dict[str, list[tuple[int, SpanLabel]]] = {}
        for numbered in enumerate(records(files[0], SpanLabel)):
            self._labels.setdefault(numbered[1].trajectory_id, []).append(numbered)

    def over(self, trajectories: Iterable[Trajectory]) -> list[Trajectory]:
        """Merge them into all trajectories of some tasks."""
        trajectories = [with_verdicts(trajectory, self._verdicts) for trajectory in trajectories]
        if not self._labels:
            return trajectories
        origin = origins(trajectories)
        numbered: list[tuple[int, SpanLabel, Span]] = []
        for trajectory in trajectories:
            if labels := self._labels.get(trajectory.trajectory_id):
                spans = {span.span_id: span for span in trajectory.spans}
                numbered += [(n, label, spans[label.span_id]) for n, label in labels if label.span_id in spans]
        last: dict[Hashable, SpanLabel] = {}
        for _, label, span in sorted(numbered, key=itemgetter(0)):
            last[origin[label.trajectory_id], *_answer(span)] = label
        labelled = {label.span_id for label in last.values()}

        def with_own(trajectory: Trajectory) -> Trajectory:
            if not any(span.span_id in labelled for span in trajectory.spans):
                return trajectory
            own = origin[trajectory.trajectory_id]
            labels = [(last.get((own, *_answer(span))), span) for span in trajectory.spans]
            return trajectory.changed(
                spans=tuple(s if label is None else label.over(s, self._scores.get(_key(label))) for label, s in labels)
            )

        return [with_own(trajectory) for trajectory in trajectories]


def _key(label: SpanLabel | LabelScore) -> tuple[str, ...]:
    return label.trajectory_id, label.span_id, label.by, label.labelled_at


def _answer(span: Span) -> tuple[str, str]:
    return span.span_id, json.dumps(span.message, sort_keys=True, default=str)
