"""Episodes of plain Python code: the calls of an instrumented client, recorded as a tree of spans.

    client = r3agent.instrument(AsyncOpenAI(base_url=..., api_key=...))

    with r3agent.trace(recorder=recorder) as episode:
        answer = await client.chat.completions.create(model=..., messages=messages)           # an attempt
        episode.verdict(passed=False)
        with episode.span("reflect", parent=episode.answer) as reflection:
            thought = await client.chat.completions.create(model=..., messages=[...])
        with episode.span("retry", parent=reflection) as retry:
            answer = await client.chat.completions.create(model=..., messages=[...])
        episode.verdict(retry, passed=True)

If the messages continue the parent's conversation, the span's `request` has only the new messages; otherwise it has all
messages as sent, and the span is `standalone`: see `r3agent.recording.conversation`. Concurrent episodes do not mix.
Tasks and `asyncio.to_thread` inherit the current episode, and threads of an executor do not: enter `with episode:` in
them too. Calls that are not recorded are logged as warnings.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from r3agent._util.checked import checked
from r3agent._util.messages import explain
from r3agent.errors import ConfigError
from r3agent.recording.episode import Episode
from r3agent.recording.recorder import Recorder
from r3agent.records.trajectory import Task, Trajectory
from r3agent.store.index import lookup

logger = logging.getLogger(__name__)


@checked
def trace(
    task: Task | Mapping[str, Any] | None = None,
    *,
    resume: Trajectory | Mapping[str, Any] | str | None = None,
    recorder: Recorder | None = None,
    out: str | Path | None = None,
    metadata: Mapping[Any, Any] | None = None,
) -> Episode:
    """Record the calls of instrumented clients in a `with` or `async with` block as one episode.

    An error in the block is recorded with the episode and raised; an interrupt of LangGraph is none. A block without an
    error and without a span records nothing; if no call was made, a warning names the likely causes. An episode can be
    entered again in other threads while it is open; it ends with its last block. `episode.trajectory` is the record;
    the module's docstring shows a complete episode. In a trace within another, the metadata name the outer one.

    Args:
        task: a `Task` or its JSON, with the `info` that a verifier reads; default: the messages and tools of the
            policy's first call, without any.
        resume: an episode that goes on in this block, perhaps in another process: its trajectory, or the JSON of it, or
            its id in the store of `out` or `recorder`, which takes a search. It keeps its id, and readers of the store
            see its last state. One block at a time can go on with it.
        recorder: receives the episode at the end of the block.
        out: a store, for scripts: the episode is written as its own shard at the end of the block.
        metadata: recorded with the episode.

    Raises:
        ConfigError: `task` is not a valid task; `resume` is no trajectory, or with `out` not in the store.
        ConfigError, RecordError: at the end of the block, `out` cannot be written.
    """
    if resume is None:
        return Episode(None if task is None else Task.of(task), recorder, out, {"metadata": dict(metadata or {})})
    if task is not None:
        raise ConfigError("resume: the episode that goes on has its task; leave `task` out")
    if (tree := _find(resume, recorder, out)) is None:
        return Episode.lost(str(resume))
    return Episode.seeded(tree.changed(metadata={**tree.metadata, **(metadata or {})}), recorder, out)


def _find(resume: Trajectory | Mapping[str, Any] | str, recorder: Recorder | None, out: Any) -> Trajectory | None:
    """Return the episode that goes on; `None` if a recorder did not keep it."""
    if isinstance(resume, Trajectory):
        return resume
    if not isinstance(resume, str):
        try:
            return Trajectory.model_validate(resume)
        except ValidationError as error:
            raise ConfigError(f"resume is no trajectory: {explain(error, Trajectory)}") from None
    if recorder is None and out is None:
        raise ConfigError(
            f"resume = {resume!r}: an id is looked up in a store; pass out= or recorder=, or a Trajectory"
        )
    if recorder is None:
        return lookup(out, resume)
    recorder.flush()
    try:
        return lookup(recorder.directory, resume)
    except ConfigError as missing:  # left out by its sample rate, or lost: the request goes on
        logger.warning("an episode goes on without a record: %s", missing)
        return None
