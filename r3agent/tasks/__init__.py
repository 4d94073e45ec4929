"""Where problems come from. A task source yields tasks; it is named by the user and found here."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, TypeAlias

from r3agent.errors import ConfigError, R3Error
from r3agent.imports import load_attribute
from r3agent.tasks import countdown
from r3agent.tasks.jsonl import load_jsonl
from r3agent.tasks.splits import split_of
from r3agent.trajectory import Task

TaskSource: TypeAlias = Callable[..., Iterable[Task]]
"""Called as `source(n, seed=..., split=..., **params)`; yields up to `n` tasks."""

SOURCES: dict[str, TaskSource] = {"countdown": countdown.generate}


def find_tasks(source: str, n: int | None = None, *, seed: int = 0, split: str = "train", **params: Any) -> list[Task]:
    """The tasks of a source: a shipped one by name, a `.jsonl` file, or the user's `module:callable`.

    Args:
        n: how many; `None` takes all of a file.
        split: `train`, `test` or `all`; see `splits.py`. No task is in both of the first two.
        params: what the source understands, e.g. `max_number` of countdown.

    Raises:
        ConfigError: there is no such source, it does not take `params`, or it holds no task.
    """
    if n is not None and n < 1:
        raise ConfigError(f"n = {n}: ask for at least 1 task")
    if source.endswith(".jsonl"):
        if params:
            raise ConfigError(f"task file {source} takes no params, but has {params}; remove them")
        tasks = _drawn(load_jsonl(source), n, seed=seed, split=split)
    else:
        tasks = _generated(source, n, seed=seed, split=split, **params)
    if not tasks:
        raise ConfigError(f"task source {source!r} holds no task in split {split!r}, which is one of train, test, all")
    return tasks


def _drawn(tasks: Iterable[Task], n: int | None, *, seed: int, split: str) -> list[Task]:
    """`n` tasks of the split, others with every seed."""
    held = [task for task in tasks if split in ("all", split_of(task.id))]
    return held if n is None or n >= len(held) else random.Random(seed).sample(held, n)


def _generated(source: str, n: int | None, **settings: Any) -> list[Task]:
    if source not in SOURCES and ":" not in source:
        raise ConfigError(
            f"task {source!r} is unknown; use one of {sorted(SOURCES)}, a .jsonl file, or your own as module:callable"
        )
    if n is None:
        raise ConfigError(f"task {source!r} is generated: say how many with --n")
    make: Callable[..., Iterable[object]] = SOURCES.get(source) or load_attribute(source)
    tasks: list[Task] = []
    try:
        for task in islice(make(n, **settings), n):
            if not isinstance(task, Task):
                raise ConfigError(f"task {source!r} yielded a {type(task).__name__}; it must yield r3agent.Task")
            tasks.append(task)
    except R3Error:
        raise
    except Exception as error:  # a user's source may raise anything
        raise ConfigError(f"task {source!r} with {settings}: {type(error).__name__}: {error}") from error
    return tasks
