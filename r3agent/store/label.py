"""Truth that comes later: a verdict for an episode that is stored already."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

from r3agent.errors import ConfigError
from r3agent.records.trajectory import Span, Trajectory
from r3agent.store.labels import SpanLabel, append_label
from r3agent.store.trajectories import lookup, store_at


def label(
    directory: str | Path,
    trajectory_id: str | Trajectory,
    *,
    passed: bool,
    span_id: str | None = None,
    feedback: str | None = None,
    by: str | None = None,
) -> SpanLabel:
    """Attach a verdict to a stored episode; `load` and training see it from then on.

    Args:
        directory: the store, or the run that has it as `trajectories/`.
        trajectory_id: or what it begins with, if that is one only; a `Trajectory` in hand saves searching the store.
        span_id: a try; default the one that answered.
        feedback: why, for people.
        by: who says so; default the name of the user that the process runs as.

    Raises:
        ConfigError: there is no such episode, with the nearest id, or no such try in it.
        RecordError: the store cannot be read, or the disk is full.
    """
    directory = store_at(directory)
    known = isinstance(trajectory_id, Trajectory)
    trajectory = trajectory_id if known else lookup(directory, trajectory_id)
    span = _try_of(trajectory, span_id)
    attached = SpanLabel(
        trajectory_id=trajectory.trajectory_id,
        span_id=span.span_id,
        passed=passed,
        feedback=feedback,
        by=_user() if by is None else by,
    )
    append_label(directory, attached)
    return attached


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
    return tries[span_id]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return f"uid {os.getuid()}"
