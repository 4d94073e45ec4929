"""Readers of a store: trajectories with their labels, or a dataset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from r3agent._util.checked import checked
from r3agent.errors import RecordError
from r3agent.records.trajectory import Record, Trajectory
from r3agent.store.labels import with_labels
from r3agent.store.reading import Unreadable
from r3agent.store.shards import latest, read

if TYPE_CHECKING:
    from datasets import Dataset, Features


@checked
def load(
    directory: str | Path,
    *,
    version: str | None = None,
    accept: Callable[[Trajectory], bool] = lambda _: True,
    strict: bool = False,
    unreadable: list[Unreadable] | None = None,
) -> list[Trajectory]:
    """Read one trajectory per id, with its labels; an episode that was collected again replaces the failed one.

    Args:
        directory: the store, or the run directory that contains it as `trajectories/`.
        version: leave out trajectories with a span that is not known to be of this policy version.
        accept: leave out trajectories for which this returns False.
        strict: raise at a line that is no trajectory; default: leave such lines out and log one warning.
        unreadable: receives such lines, instead of the log.

    Raises:
        ConfigError, RecordError, SchemaVersionError: as `read`.
    """
    found = (
        t
        for t in read(directory, strict=strict, unreadable=unreadable)
        if (version is None or {*t.policy_versions} <= {version}) and accept(t)
    )
    return with_labels(directory, latest(found))


def to_dataset(directory: str | Path) -> Dataset:
    """Read the records as a `datasets.Dataset` with one row per trajectory; needs the `train` extra.

    Raises:
        RecordError: there are no trajectories.
    """
    from datasets import Dataset

    trajectories = load(directory)
    if not trajectories:
        raise RecordError(f"{directory}: no trajectories; collect some first")
    return Dataset.from_list([t.model_dump(mode="json") for t in trajectories], features=features())


def features() -> Features:
    """Describe the record's columns for `datasets.load_dataset("json", data_files=..., features=features())`.

    Without them `datasets` assumes that a column that is empty in the first shard is always empty, and fails at the
    first error or tool call of a later shard.
    """
    from datasets import Features

    return Features(_feature(Trajectory))


def _feature(kind: Any) -> Any:
    from datasets import Json, List, Value

    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:  # a union with None, which every column may hold
        return _feature(inner[0])
    if origin is tuple:
        return List(_feature(inner[0]))
    if origin is dict:
        return Json()
    if origin is Literal:
        return _feature(type(inner[0]))
    if issubclass(kind, Record):
        return {name: _feature(field.annotation) for name, field in kind.model_fields.items()}
    return Value({str: "string", int: "int64", float: "float64", bool: "bool"}[kind])
