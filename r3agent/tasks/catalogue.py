"""Task sources by name; a source yields tasks.

A name is a shipped source (`countdown`), one with its data (`bfcl:simple_python`, `hf:openai/gsm8k`), a file
(`.jsonl`, `.json`, `.csv`, `.parquet`), the user's `module:callable`, or an entry point of the group `r3agent.tasks`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import ValidationError

from r3agent._util.checked import checked
from r3agent._util.imports import entry_points, load_attribute
from r3agent._util.messages import explain
from r3agent._util.params import check_params
from r3agent.errors import ArgumentError, ConfigError, R3Error
from r3agent.records.trajectory import Task
from r3agent.tasks.splits import APART, unique
from r3agent.tasks.text_files import ENDINGS, ending

TaskSource: TypeAlias = Callable[..., Iterable[Task | dict[str, Any]]]
"""Callable as `source(n, seed=..., split=..., **params)` that yields up to `n` tasks, or all of them if `n` is `None`;
a shipped source also gets the text after its colon as `name=`."""


@dataclass(frozen=True)
class ShippedSource:
    """Task source in this package."""

    source: str
    """`module:callable`, imported on first use."""
    verifier: str
    """Default verifier of its tasks."""
    finite: bool = False
    """True if it has a fixed set of tasks, all yielded if `n` is `None`; otherwise it generates tasks."""


SOURCES: dict[str, ShippedSource] = {
    "bfcl:CATEGORY": ShippedSource("r3agent.tasks.bfcl:load", verifier="function_call", finite=True),
    "countdown": ShippedSource("r3agent.tasks.countdown:generate", verifier="countdown"),
    "countdown:FILE": ShippedSource("r3agent.tasks.countdown:load", verifier="countdown", finite=True),
    "countdown_steps": ShippedSource("r3agent.tasks.countdown_steps:generate", verifier="countdown_steps"),
    "recorded": ShippedSource("r3agent.tasks.recorded:tasks", verifier="later", finite=True),
    "recorded:STORE": ShippedSource("r3agent.tasks.recorded:tasks", verifier="later", finite=True),
    "reasoning-gym:NAME": ShippedSource("r3agent.tasks.reasoning_gym:generate", verifier="reasoning_gym"),
    "hf:NAME": ShippedSource("r3agent.tasks.dataset:from_hub", verifier="exact", finite=True),
    "xlam:FILE": ShippedSource("r3agent.tasks.xlam:load", verifier="function_call", finite=True),
}
"""Shipped sources; names have placeholders in capitals. To add one, add a file to this folder and a line here."""

PASSED = {
    "n": "--n and collect.n, eval.n say how many tasks",
    "seed": "task.seed and eval.seed are the seeds",
    "split": "collections draw from train, and gate.split and eval.split name the others",
}
"""Arguments of a source that its caller passes, and the settings for them."""

NO_SOURCE = (
    "task.source is empty: name your tasks with --task, or in r3.toml: a file such as tasks.jsonl, hf:NAME, or "
    "module:callable; --task countdown is one to try"
)
"""Message for settings without a task."""

GROUP = "r3agent.tasks"
"""Entry point group for packages that provide sources."""


@checked
def find_tasks(
    source: str, n: int | None = None, /, *, seed: int = 0, split: str = "train", **params: Any
) -> list[Task]:
    """Return the tasks of a source.

    Args:
        n: number of tasks; `None` returns all tasks of a finite source.
        split: `train`, `gate`, `test` or `all`; see `splits.py`. The first three share no task.
        params: settings of the source, e.g. `max_number` of countdown.

    Raises:
        ConfigError: there is no such source, it does not accept `params`, it has no task, or two tasks share an id.
    """
    tasks = unique(read_tasks(source, n, seed=seed, split=split, **params))
    if not tasks:
        settings = f" with {params}" if params else ""
        held = ""
        if is_finite(source) and split in APART:
            held = ", ".join(f"{part} {len(read_tasks(source, seed=seed, split=part, **params))}" for part in APART)
            held = f" a hash gives a task its split, here {held};"
        other = "" if split == "train" else ", or choose another split (gate.split, eval.split)"
        raise ConfigError(
            f"task source {source!r}{settings} holds no task in split {split!r}, one of train, gate, test, all;{held} "
            f"give it more tasks{other}"
        )
    return tasks


def fault_of_params(params: Mapping[str, Any]) -> str:
    """Return why settings cannot be a source's: its caller passes one of them; empty if none is."""
    return next((f"{key} cannot be set; {instead}" for key, instead in PASSED.items() if key in params), "")


def read_tasks(
    source: str, n: int | None = None, /, *, seed: int = 0, split: str = "train", **params: Any
) -> list[Task]:
    """Return the tasks of a source as `find_tasks` does, but allow an empty source and duplicate ids.

    Raises:
        ConfigError: there is no such source, or it does not accept `params`.
    """
    if n is not None and n < 1:
        raise ConfigError(f"n = {n}: ask for at least 1 task")
    return _call(source, n, seed=seed, split=split, **params)


def is_finite(source: str) -> bool:
    """Return True if all tasks of a source can be read; a user's source may be endless."""
    shipped = _shipped(source)
    return shipped.finite if shipped else bool(ending(source))


def default_verifier(source: str) -> str:
    """Return the default verifier of a source's tasks.

    Raises:
        ConfigError: the source is the user's own, or there is no source of that name.
    """
    if _is_task_file(source):
        return "exact"
    if (shipped := _shipped(source)) is None:
        if ":" not in source and source not in entry_points(GROUP):
            raise _unknown(source)
        raise ConfigError(f"task {source!r}: name what decides success with --verifier, e.g. exact or module:callable")
    return shipped.verifier


def _call(source: str, n: int | None, *, seed: int, split: str, **params: Any) -> list[Task]:
    """Call a source and check that it yields tasks."""
    make, name = _find(source)
    tasks: list[Task] = []
    check_params(make, params, key="task.params", passed=("n", "seed", "split", *name))
    settings = {"seed": seed, "split": split, **params, **name}
    _check_signature(make, source, n, settings)
    try:
        for i, task in enumerate(islice(make(n, **settings), n)):
            if not isinstance(task, Task | dict):
                raise ConfigError(
                    f"task {source!r} yielded a {type(task).__name__}; it must yield r3agent.Task, or its fields as a "
                    "dict"
                )
            try:
                tasks.append(task if isinstance(task, Task) else Task.model_validate(task))
            except ValidationError as error:
                raise ConfigError(f"task {source!r}, item {i}: {explain(error, Task)}") from error
    except R3Error as error:
        if not isinstance(error, ArgumentError):
            raise
        raise ConfigError(f"task {source!r} with {settings}: {error}") from error
    except Exception as error:  # a user's source may raise anything
        raise ConfigError(f"task {source!r} with {settings}: {type(error).__name__}: {error}") from error
    return tasks


def _check_signature(make: Callable[..., object], source: str, n: int | None, settings: Mapping[str, Any]) -> None:
    """Check that a source takes what it is called with.

    Raises:
        ConfigError: it does not; the message has the signature to write.
    """
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(n, **settings)
    except TypeError as error:
        name = source.rpartition(":")[2]
        raise ConfigError(f"task {source!r}: {error}; write `def {name}(n, *, seed, split)`") from None


def _shipped(source: str) -> ShippedSource | None:
    head, _, name = source.partition(":")
    for written, shipped in SOURCES.items():
        known, _, needs = written.partition(":")
        if head == known and bool(name) == bool(needs):
            return shipped
    return None


def _is_task_file(source: str) -> bool:
    return bool(ending(source)) and _shipped(source) is None


def _find(source: str) -> tuple[Callable[..., Iterable[object]], dict[str, str]]:
    """Return the callable for a name, and the text after the colon as its `name` argument."""
    head, _, name = source.partition(":")
    if _is_task_file(source):
        return load_attribute("r3agent.tasks.dataset:from_file"), {"name": source}
    if (shipped := _shipped(source)) is not None:
        return load_attribute(shipped.source), {"name": name} if name else {}
    if head in {written.partition(":")[0] for written in SOURCES}:
        raise _unknown(source)
    if name:
        try:
            return load_attribute(source), {}
        except ConfigError as error:
            if near := _near(source):
                raise ConfigError(f"task {error}; did you mean {near!r}?") from error
            raise
    if source in (own := entry_points(GROUP)):
        return load_attribute(own[source]), {}
    raise _unknown(source)


def _unknown(source: str) -> ConfigError:
    if not source:
        return ConfigError(NO_SOURCE)
    if Path(source).expanduser().is_dir():
        return ConfigError(f"task {source!r} is a directory; name it as hf:{source}, or one of its files")
    near = _near(source)
    hint = f"did you mean {near!r}? " if near else ""
    return ConfigError(
        f"task {source!r} is unknown; {hint}use one of {_known()}, a file ({', '.join(ENDINGS)}), or your own as "
        "module:callable"
    )


def _known() -> list[str]:
    return sorted([*SOURCES, *entry_points(GROUP)])


def _near(source: str) -> str | None:
    """Return the known name nearest to a source's, with a colon if the source has one and both exist."""
    names = sorted(_known(), key=lambda name: (":" in name) == (":" in source))
    heads = {name.partition(":")[0]: name for name in names}
    near = get_close_matches(source.partition(":")[0], heads, n=1)
    return heads[near[0]] if near else None
