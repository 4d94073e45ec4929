"""`trace`: the way into an episode of plain Python."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r3agent.recording.episode import Episode
from r3agent.recording.recorder import Recorder
from r3agent.records.trajectory import Task


def trace(
    task: Task | Mapping[str, Any] | None = None,
    *,
    recorder: Recorder | None = None,
    out: str | Path | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Episode:
    """Record what instrumented clients are asked in a block, `with` or `async with`, as one episode.

    An error that leaves the block is recorded with the episode, and raised. Without one, and without a span, there is
    nothing to record. `episode.trajectory` is the record; `r3agent.recording.episode` shows a whole one.

    Args:
        task: a `Task` or its JSON; default the messages and tools of the first call.
        recorder: takes the episode when the block ends.
        out: a store, for scripts: the episode is written when the block ends, as a shard of its own.
        metadata: recorded with it.

    Raises:
        ConfigError: `task` cannot be read as one.
        ConfigError, RecordError: where the block ends, `out` cannot be written.
    """
    return Episode(None if task is None else Task.of(task), recorder, out, metadata)
