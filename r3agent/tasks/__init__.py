"""Where problems come from. A task source yields tasks; it is named by the user and found here.

A name is a shipped source (`countdown`), one with what it draws on (`bfcl:simple_python`, `hf:openai/gsm8k`), a file
(`.jsonl`, `.json`, `.csv`, `.parquet`), the user's `module:callable`, or an entry point of the group `r3agent.tasks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

from r3agent._util.imports import entry_points, load_attribute
from r3agent.errors import ConfigError, R3Error
from r3agent.records.trajectory import Task
from r3agent.tasks.jsonl import load_jsonl
from r3agent.tasks.rows import ENDINGS
from r3agent.tasks.splits import draw, unique

TaskSource: TypeAlias = Callable[..., Iterable[Task]]
"""Called as `source(n, seed=..., split=..., **params)`, and `name=` for what stands after the colon of a shipped one;
yields up to `n` tasks, all it has where `n` is `None`."""


@dataclass(frozen=True)
class Shipped:
    """One source of this package."""

    source: str
    """`module:callable`, imported when it is asked for."""
    verifier: str
    """Which verifier decides its tasks unless the user names another."""
    finite: bool = False
    """It has a number of tasks, all of which it yields where none is asked for; else tasks are made."""


SOURCES: dict[str, Shipped] = {
    "bfcl:CATEGORY": Shipped("r3agent.tasks.bfcl:load", verifier="function_call", finite=True),
    "countdown": Shipped("r3agent.tasks.countdown:generate", verifier="countdown"),
    "countdown:FILE": Shipped("r3agent.tasks.countdown:load", verifier="countdown", finite=True),
    "reasoning-gym:NAME": Shipped("r3agent.tasks.reasoning_gym:generate", verifier="reasoning_gym"),
    "hf:NAME": Shipped("r3agent.tasks.dataset:from_hub", verifier="exact", finite=True),
    "xlam:FILE": Shipped("r3agent.tasks.xlam:load", verifier="function_call", finite=True),
}
"""As they are written; the user fills in what is in capitals. A new source is a file in this folder and a line here."""

GROUP = "r3agent.tasks"
"""Of entry points, for packages that bring sources."""


def find_tasks(
    source: str, n: int | None = None, /, *, seed: int = 0, split: str = "train", **params: Any
) -> list[Task]:
    """The tasks of a source.

    Args:
        n: how many; `None` takes all of a source that is finite.
        split: `train`, `gate`, `test` or `all`; see `splits.py`. No task is in two of the first three.
        params: what the source understands, e.g. `max_number` of countdown.

    Raises:
        ConfigError: there is no such source, it does not take `params`, it holds no task, or two share an id.
    """
    tasks = unique(read_tasks(source, n, seed=seed, split=split, **params))
    if not tasks:
        raise ConfigError(f"task source {source!r} holds no task in split {split!r}, one of train, gate, test, all")
    return tasks


def read_tasks(
    source: str, n: int | None = None, /, *, seed: int = 0, split: str = "train", **params: Any
) -> list[Task]:
    """As `find_tasks`, but there may be none, and those that share an id are given as they are.

    Raises:
        ConfigError: there is no such source, or it does not take `params`.
    """
    if n is not None and n < 1:
        raise ConfigError(f"n = {n}: ask for at least 1 task")
    if source.endswith(".jsonl") and _is_task_file(source) and not params:
        return draw(load_jsonl(source), n, seed=seed, split=split)
    return _asked(source, n, seed=seed, split=split, **params)


def is_finite(source: str) -> bool:
    """Whether all tasks of a source can be asked for; a source of the user's own may go on for ever."""
    shipped = _shipped(source)
    return shipped.finite if shipped else source.endswith(ENDINGS)


def default_verifier(source: str) -> str:
    """The verifier of a source's tasks, where the user names none.

    Raises:
        ConfigError: the source is the user's own, or there is none of that name.
    """
    if _is_task_file(source):
        return "exact"
    if (shipped := _shipped(source)) is None:
        if ":" not in source and source not in entry_points(GROUP):
            raise _unknown(source)
        raise ConfigError(f"task {source!r}: name what decides success with --verifier, e.g. exact or module:callable")
    return shipped.verifier


def _asked(source: str, n: int | None, **settings: Any) -> list[Task]:
    """What the source yields when it is called."""
    make, named = _find(source)
    settings |= named
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


def _shipped(source: str) -> Shipped | None:
    head, _, name = source.partition(":")
    for written, shipped in SOURCES.items():
        known, _, needs = written.partition(":")
        if head == known and bool(name) == bool(needs):
            return shipped
    return None


def _is_task_file(source: str) -> bool:
    return source.endswith(ENDINGS) and _shipped(source) is None


def _find(source: str) -> tuple[Callable[..., Iterable[object]], dict[str, str]]:
    """The callable behind a name, and what stands after the colon."""
    head, _, name = source.partition(":")
    if _is_task_file(source):
        return load_attribute("r3agent.tasks.dataset:from_file"), {"name": source}
    if (shipped := _shipped(source)) is not None:
        return load_attribute(shipped.source), {"name": name} if name else {}
    if head in {written.partition(":")[0] for written in SOURCES}:
        raise _unknown(source)
    if name:
        return load_attribute(source), {}
    if source in (own := entry_points(GROUP)):
        return load_attribute(own[source]), {}
    raise _unknown(source)


def _unknown(source: str) -> ConfigError:
    return ConfigError(
        f"task {source!r} is unknown; use one of {sorted([*SOURCES, *entry_points(GROUP)])}, a file "
        f"({', '.join(ENDINGS)}), or your own as module:callable"
    )
