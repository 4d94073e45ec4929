"""Compaction of a store: its finished shards become few in Parquet, compressed with zstd.

A plan beside the shards names the sources of the file that replaces them. They are removed only after the file was read
back; a process that was killed in between leaves the plan, and the next compaction removes what is left of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import orjson

from r3agent._util.checked import checked
from r3agent._util.files import disk_errors, write_atomically
from r3agent._util.lock import file_lock
from r3agent._util.messages import count
from r3agent.data.rewriting import alone, no_collection
from r3agent.errors import BusyError, RecordError
from r3agent.records.record import Record, new_id
from r3agent.records.trajectory import Trajectory
from r3agent.store.entry import index_path
from r3agent.store.parquet import ENDING, read_lines, write_lines
from r3agent.store.reading import Unreadable, lines_of, parse_lines
from r3agent.store.shards import shards, store_at

PLAN = ".compact.json"

MAX_BYTES = 256 << 20
"""Size of the lines in one file."""


class Compacted(Record):
    """Report on a compaction."""

    directory: str
    sources: int
    """Number of shards that were replaced."""
    files: tuple[str, ...]
    """Files in their place."""
    lines: int
    bytes_before: int
    bytes_after: int
    skipped: dict[str, str] = {}
    """Shards that stay, with the reason."""


@checked
def compact(directory: str | Path) -> Compacted:
    """Replace the shards of a store by few in Parquet, which everything that reads shards reads.

    Shards that a process writes, and shards with lines that are no records, stay. Labels stay too.

    Raises:
        ConfigError: there is no such store, or `pyarrow` is not installed.
        BusyError: the run is collecting, or another process compacts the store.
        RecordError: a file is not read back as it was written; its sources stay.
    """
    store = store_at(directory)
    shards(store)  # raises if there is none
    skipped: dict[str, str] = {}
    files: list[Path] = []
    n_sources = n_lines = before = 0
    with no_collection(store), file_lock(store / ".compact.lock", "compact"), ExitStack() as locks:
        _finish(store)
        sources = [path for path in shards(store) if path.suffix != ENDING]
        for batch in _batches([path for path in sources if _is_ready(path, locks, skipped)]):
            size = sum(path.stat().st_size for path in batch)
            path, n = _write(store, batch)
            files.append(path)
            n_sources, n_lines, before = n_sources + len(batch), n_lines + n, before + size
    return Compacted(
        directory=str(store),
        sources=n_sources,
        files=tuple(map(str, files)),
        lines=n_lines,
        bytes_before=before,
        bytes_after=sum(path.stat().st_size for path in files),
        skipped=skipped,
    )


def _is_ready(path: Path, locks: ExitStack, skipped: dict[str, str]) -> bool:
    """Lock a shard; return False, with the reason, if it has to stay."""
    try:
        locks.enter_context(alone(path))
    except BusyError:
        skipped[str(path)] = "a process writes it"
        return False
    faults = sum(isinstance(record, Unreadable) for record in parse_lines(path, Trajectory))
    if faults:
        skipped[str(path)] = (
            f"{count(faults, 'line')} to repair: r3agent data check --repair mends or takes out what it can"
        )
    return not faults


def _batches(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Yield shards that fit into one file, in their order."""
    batch, size = list[Path](), 0
    for path in paths:
        if batch and size + path.stat().st_size > MAX_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(path)
        size += path.stat().st_size
    if batch:
        yield batch


def _lines(paths: Sequence[Path]) -> Iterator[bytes]:
    return (line.rstrip(b"\r\n") for path in paths for line in lines_of(path) if line.strip())


def _write(store: Path, batch: Sequence[Path]) -> tuple[Path, int]:
    """Write the file that replaces some shards, read it back, and remove them."""
    name = f"{batch[0].stem}{ENDING}"
    name = f"{batch[0].stem}-{new_id()}{ENDING}" if (store / name).exists() else name
    draft = store / f"{PLAN}.{name}"
    with disk_errors(draft):
        try:
            n = write_lines(draft, _lines(batch), replace=True)
            with suppress(ValueError):
                if all(a == b for a, b in zip(read_lines(draft), _lines(batch), strict=True)):
                    write_atomically(store / PLAN, orjson.dumps({"file": name, "sources": _identities(batch)}))
                    os.replace(draft, store / name)
                    _finish(store)
                    return store / name, n
            raise RecordError(
                f"{draft}: it is not read back as it was written; the disk may be at fault, nothing changed"
            )
        finally:
            draft.unlink(missing_ok=True)


def _identities(paths: Sequence[Path]) -> dict[str, list[int]]:
    return {path.name: [(stat := path.stat()).st_ino, stat.st_size, stat.st_mtime_ns] for path in paths}


def _finish(store: Path) -> None:
    """Remove the sources of a file that is whole; without it, nothing was replaced."""
    for draft in store.glob(f"*{PLAN}.*"):
        draft.unlink()
    if not (store / PLAN).is_file():
        return
    plan = orjson.loads((store / PLAN).read_bytes())
    for name, identity in plan["sources"].items() if (store / plan["file"]).is_file() else ():
        path = store / name
        if not path.is_file() or _identities([path])[name] != identity:
            continue  # removed, and maybe another collection's by now
        path.unlink()
        index_path(path).unlink(missing_ok=True)
    (store / PLAN).unlink()
