"""Where problems come from. A task source yields tasks; it is named by the user and found here.

A name is a shipped source (`countdown`), one with what it draws on (`bfcl:simple_python`), a file of tasks, the user's
`module:callable`, or an entry point of the group `r3agent.tasks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

from r3agent.errors import ConfigError, R3Error
from r3agent.imports import entry_points, load_attribute
from r3agent.tasks.jsonl import load_jsonl
from r3agent.tasks.splits import draw
from r3agent.trajectory import Task

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
    needs_name: str = ""
    """What stands after the colon of its name, if anything must."""


SOURCES: dict[str, Shipped] = {
    "bfcl": Shipped("r3agent.tasks.bfcl:load", verifier="function_call", needs_name="CATEGORY"),
    "countdown": Shipped("r3agent.tasks.countdown:generate", verifier="countdown"),
    "xlam": Shipped("r3agent.tasks.xlam:load", verifier="function_call", needs_name="FILE.jsonl"),
}
"""A new source is a file in this folder and a line here."""

GROUP = "r3agent.tasks"
"""Of entry points, for packages that bring sources."""


def find_tasks(source: str, n: int | None = None, *, seed: int = 0, split: str = "train", **params: Any) -> list[Task]:
    """The tasks of a source.

    Args:
        n: how many; `None` takes all of a source that is finite.
        split: `train`, `gate`, `test` or `all`; see `splits.py`. No task is in two of the first three.
        params: what the source understands, e.g. `max_number` of countdown.

    Raises:
        ConfigError: there is no such source, it does not take `params`, or it holds no task.
    """
    if n is not None and n < 1:
        raise ConfigError(f"n = {n}: ask for at least 1 task")
    if _is_file(source):
        if params:
            raise ConfigError(f"task file {source} takes no params, but has {params}; remove them")
        tasks = draw(load_jsonl(source), n, seed=seed, split=split)
    else:
        tasks = _asked(source, n, seed=seed, split=split, **params)
    if not tasks:
        raise ConfigError(f"task source {source!r} holds no task in split {split!r}, one of train, gate, test, all")
    return tasks


def default_verifier(source: str) -> str:
    """The verifier of a source's tasks, where the user names none.

    Raises:
        ConfigError: the source is the user's own.
    """
    if _is_file(source):
        return "exact"
    if (shipped := SOURCES.get(source.partition(":")[0])) is None:
        raise ConfigError(f"task {source!r}: name what decides success with --verifier, e.g. exact or module:callable")
    return shipped.verifier


def _is_file(source: str) -> bool:
    """A file of tasks, and not one that a shipped source reads (`xlam:FILE.jsonl`)."""
    return source.endswith(".jsonl") and source.partition(":")[0] not in SOURCES


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


def _find(source: str) -> tuple[Callable[..., Iterable[object]], dict[str, str]]:
    """The callable behind a name, and what stands after the colon."""
    head, _, name = source.partition(":")
    if (shipped := SOURCES.get(head)) is not None:
        if bool(name) != bool(shipped.needs_name):
            wanted = f"write {head}:{shipped.needs_name}" if shipped.needs_name else f"write {head}, with no {name!r}"
            raise ConfigError(f"task {source!r}: {wanted}")
        return load_attribute(shipped.source), {"name": name} if name else {}
    if name:
        return load_attribute(source), {}
    own = entry_points(GROUP)
    if source in own:
        return load_attribute(own[source]), {}
    known = [f"{head}:{s.needs_name}" if s.needs_name else head for head, s in SOURCES.items()]
    raise ConfigError(
        f"task {source!r} is unknown; use one of {sorted([*known, *own])}, a .jsonl file, or your own as "
        "module:callable"
    )
