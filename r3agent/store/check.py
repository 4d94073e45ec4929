"""Check and repair of a store: what its files have that is no record, and what of it can be mended."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from r3agent._util.files import disk_errors, write_atomically
from r3agent._util.messages import explain
from r3agent.errors import BusyError, SchemaVersionError
from r3agent.records.json_values import json_value, parse_json
from r3agent.records.record import MENDED, Record, VersionedRecord
from r3agent.records.trajectory import Trajectory
from r3agent.store import parquet
from r3agent.store.entry import index_path
from r3agent.store.labels import SpanLabel, label_files
from r3agent.store.lines import encode, why_wrong
from r3agent.store.reading import lines_of
from r3agent.store.shards import shards, store_at


class Fault(Record):
    """A line that is no record, or no sound one."""

    file: str
    line: int
    kind: Literal["torn", "unreadable", "other_version", "mendable", "copy"]
    """`torn`: no JSON; `unreadable`: no record; `mendable`: read with a part or its checksum replaced, as `--repair`
    writes it; `copy`: the same as an earlier line."""
    detail: str


class StoreCheck(Record):
    """Report on a store."""

    directory: str
    files: int = 0
    records: int = 0
    """Trajectories that can be read, with those that are mended while reading."""
    labels: int = 0
    faults: tuple[Fault, ...] = ()
    duplicates: tuple[str, ...] = ()
    """Ids of several trajectories without an error, of which `load` takes the first."""
    unknown_labels: tuple[str, ...] = ()
    """Labels of trajectories or spans that are not in the store, as `TRAJECTORY/SPAN`."""
    backups: tuple[str, ...] = ()
    """Originals of the repaired files."""

    @property
    def ok(self) -> bool:
        """Return True if nothing is left to repair."""
        return not self.faults or (bool(self.backups) and all(f.kind != "other_version" for f in self.faults))


class _Line(NamedTuple):
    """A line, and what a repair writes instead; `None` takes it out."""

    number: int
    record: VersionedRecord | None
    fault: Fault | None
    repaired: bytes | None


def check_store(directory: str | Path, *, repair: bool = False) -> StoreCheck:
    """Read every line of a store or run directory, and report what is no sound record.

    Args:
        repair: replace each file that has faults. Records are mended where they can be; lines that are no record, and
            exact copies of a trajectory, are taken out. The original stays beside it, as `NAME.jsonl.bak`.

    Raises:
        ConfigError: there is no such directory, or it cannot be written.
        BusyError: another process writes a file that has to be repaired.
    """
    store = store_at(directory)
    faults: list[Fault] = []
    backups: list[str] = []
    seen: dict[bytes, str] = {}
    whole: Counter[str] = Counter()
    spans: set[tuple[str, str]] = set()
    files = shards(store)
    n_records, given_labels = 0, list[SpanLabel]()
    kinds: dict[Path, type[VersionedRecord]] = {**dict.fromkeys(files, Trajectory), **label_files(store)}
    for path, kind in kinds.items():
        written: list[bytes] = []
        is_sound = True
        for line, content in _lines(path, kind):
            if line.fault is not None:
                faults.append(line.fault)
            record, repaired = line.record, line.repaired
            if isinstance(record, Trajectory):
                n_records += 1
                spans |= {(record.trajectory_id, span.span_id) for span in record.spans}
                if content in seen:
                    repaired = None
                    faults.append(Fault(file=str(path), line=line.number, kind="copy", detail=f"of {seen[content]}"))
                elif record.error is None:
                    whole[record.trajectory_id] += 1
                seen.setdefault(content, f"{path}:{line.number}")
            elif isinstance(record, SpanLabel):
                given_labels.append(record)
            is_sound &= repaired == content
            written += [repaired] if repaired else []
        if repair and not is_sound:
            backups.append(str(_replace(path, written)))
    unknown = [f"{x.trajectory_id}/{x.span_id}" for x in given_labels if (x.trajectory_id, x.span_id) not in spans]
    return StoreCheck(
        directory=str(store),
        files=len(files),
        records=n_records,
        labels=len(given_labels),
        faults=tuple(faults),
        duplicates=tuple(id_ for id_, n in whole.items() if n > 1),
        unknown_labels=tuple(dict.fromkeys(unknown)),
        backups=tuple(backups),
    )


def _lines(path: Path, kind: type[VersionedRecord]) -> Iterator[tuple[_Line, bytes]]:
    """Read and judge each line that is not blank."""
    for number, content in enumerate(lines_of(path), start=1):
        if content.strip():
            yield _judge(content, kind, path, number), content.rstrip(b"\r\n") + b"\n"


def _judge(content: bytes, kind: type[VersionedRecord], path: Path, number: int) -> _Line:
    def fault(kind: Any, detail: str) -> Fault:
        return Fault(file=str(path), line=number, kind=kind, detail=detail)

    losses: list[str] = []
    try:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            text = content.decode(errors="replace")
            losses.append(f"byte {error.start} is no UTF-8")
        data = parse_json(text)
    except ValueError:
        return _Line(number, None, fault("torn", f"no JSON ({len(content)} bytes)"), None)
    try:
        sound = json_value(data, finite=True, losses=losses)
        record = kind.model_validate(sound)
        if isinstance(record, Trajectory):
            given = [span.get("logprobs") for span in data.get("spans", ())]
            dropped = [i for i, span in enumerate(record.spans) if given[i] and span.logprobs is None]
            losses += [f"spans.{i}.logprobs: not numbers" for i in dropped]
            if losses:
                noted = list(dict.fromkeys([*record.metadata.get(MENDED, ()), *losses]))
                record = record.changed(metadata={**record.metadata, MENDED: noted})
    except SchemaVersionError as error:
        return _Line(number, None, fault("other_version", str(error)), content)
    except ValidationError as error:
        return _Line(number, None, fault("unreadable", explain(error, kind)), None)
    losses += [problem] if (problem := why_wrong(content)) else []
    if losses:
        repaired = encode(record) if isinstance(record, Trajectory) else record.line()
        return _Line(number, record, fault("mendable", "; ".join(losses)), repaired)
    return _Line(number, record, None, content.rstrip(b"\r\n") + b"\n")


def _replace(path: Path, lines: list[bytes]) -> Path:
    """Replace a file in one step, and return the path of the original, which stays beside it."""
    n = 1
    while (backup := path.with_name(f"{path.name}.bak{n if n > 1 else ''}")).exists():
        n += 1
    with disk_errors(path), path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"{path}: another process writes it; repair the store when it has ended") from None
        try:
            os.link(path, backup)
        except OSError:  # a file system without hard links
            shutil.copy2(path, backup)
        if path.suffix == parquet.ENDING:
            parquet.write_lines(path, (line.rstrip(b"\n") for line in lines), replace=True)
        else:
            write_atomically(path, b"".join(lines))
        index_path(path).unlink(missing_ok=True)
    return backup
