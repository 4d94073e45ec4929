"""Copy of a store, while an application may still write to it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from r3agent._util.files import disk_errors
from r3agent.errors import ConfigError
from r3agent.store.parquet import ENDING
from r3agent.store.reading import LABELS
from r3agent.store.shards import shards, store_at


def copy_store(source: str | Path, target: str | Path) -> None:
    """Copy all complete lines of a store, and its labels, in one step: interrupted, it leaves no target.

    Raises:
        ConfigError: there is no such store, it is empty, or the target has records.
        RecordError: the disk is full or unavailable.
    """
    origin, target, part = store_at(source), Path(target), Path(f"{target}.part")
    if not (files := shards(origin)):
        raise ConfigError(f"{origin}: no trajectories; name a store in which an application recorded some")
    if target.is_dir() and shards(target):
        raise ConfigError(f"{target} has trajectories of its own; name another directory with --run")
    labels = origin / LABELS
    with disk_errors(part):
        shutil.rmtree(part, ignore_errors=True)
        (part / LABELS).mkdir(parents=True)
        for path in [*files, *sorted(labels.glob("*.jsonl"))]:
            _copy_lines(path, part / path.relative_to(origin))
        if target.is_dir():
            target.rmdir()
        part.rename(target)


def _copy_lines(path: Path, to: Path) -> None:
    """Copy a file without the line that is being written; one in Parquet is whole."""
    if path.suffix == ENDING:
        shutil.copyfile(path, to)
        return
    with path.open("rb") as lines, to.open("wb") as copy:
        copy.writelines(line for line in lines if line.endswith(b"\n"))
        copy.flush()
        os.fsync(copy.fileno())
