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

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r3agent._util.checked import checked
from r3agent.recording.episode import Episode
from r3agent.recording.recorder import Recorder
from r3agent.records.trajectory import Task


@checked
def trace(
    task: Task | Mapping[str, Any] | None = None,
    *,
    recorder: Recorder | None = None,
    out: str | Path | None = None,
    metadata: Mapping[Any, Any] | None = None,
) -> Episode:
    """Record the calls of instrumented clients in a `with` or `async with` block as one episode.

    An error in the block is recorded with the episode and raised. A block without an error and without a span records
    nothing; if no call was made, a warning names the likely causes. An episode can be entered again in other threads
    while it is open; it ends with its last block. `episode.trajectory` is the record; the module's docstring shows a
    complete episode.

    Args:
        task: a `Task` or its JSON; default: the messages and tools of the first call.
        recorder: receives the episode at the end of the block.
        out: a store, for scripts: the episode is written as its own shard at the end of the block.
        metadata: recorded with the episode.

    Raises:
        ConfigError: `task` is not a valid task.
        ConfigError, RecordError: at the end of the block, `out` cannot be written.
    """
    return Episode(None if task is None else Task.of(task), recorder, out, {"metadata": dict(metadata or {})})
