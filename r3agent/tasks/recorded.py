"""Tasks of recorded trajectories, so that a run needs no other source: what people asked an application.

The hash of its prompt gives a task its split, so that one prompt under several ids is in one split.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson
from pydantic import ValidationError

from r3agent._util.messages import explain
from r3agent.errors import ConfigError
from r3agent.records.trajectory import Task
from r3agent.store.packed import Packed
from r3agent.store.reading import stored_lines
from r3agent.store.shards import shards, store_at
from r3agent.tasks.splits import Split, draw, split_of

RECORDED = "recorded"
"""Name of the source; in a run without a name after a colon, the run's own store."""


def tasks(n: int | None, *, seed: int, split: str, name: str = "") -> list[Task]:
    """Return the tasks of a store or run directory, each once; of tasks with one id, the first one.

    Raises:
        ConfigError: there is no such store, or no trajectory in it.
    """
    if not name:
        raise ConfigError(f"task {RECORDED!r}: outside of a run, name a store: {RECORDED}:STORE")
    found: dict[str, Task] = {}
    for task in _read(name) if store_at(name).is_dir() else ():
        found.setdefault(task.id, task)  # the first, so that a task stays in its split while the store grows
    if not found:
        raise ConfigError(
            f"task {RECORDED}: nothing is recorded in {store_at(name)}; let an application record into it, with a "
            "Recorder, trace(out=...) or `r3agent gateway`, or take a store with `r3agent init --task recorded --from`"
        )
    return draw((task for task in found.values() if split in ("all", split_by_prompt(task))), n, seed=seed, split="all")


def in_run(source: str, run: str | Path) -> str:
    """Return a source as a run draws from it: `recorded` is what the run itself recorded."""
    return f"{RECORDED}:{run}" if source == RECORDED else source


def split_by_prompt(task: Task) -> Split:
    """Return the split of a recorded task."""
    return split_of(Task.model_validate({"messages": task.messages}).id)


def _read(directory: str | Path) -> Iterator[Task]:
    """Read the tasks without the rest of their trajectories; `store.read` reports lines that are none."""
    for shard in shards(directory):
        for line in stored_lines(shard):
            try:
                task = orjson.loads(line.json if isinstance(line, Packed) else line)["task"]
            except (orjson.JSONDecodeError, KeyError, TypeError):
                continue
            try:
                yield Task.model_validate(task)
            except ValidationError as error:
                raise ConfigError(f"{shard}: {explain(error, Task)}; `r3agent data check` lists such lines") from None
