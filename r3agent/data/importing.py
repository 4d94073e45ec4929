"""Import of logs that another program wrote: each conversation becomes a trajectory.

Rows wait in a temporary database for what belongs to them, and new trajectories are written into a shard that appears
whole, so that an import takes little memory and stores all of it or nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from itertools import chain
from pathlib import Path
from typing import Any

from r3agent._util.checked import checked
from r3agent._util.files import decoded_parts, disk_errors, write_atomically
from r3agent._util.messages import shorten
from r3agent.data.log_formats import Logs
from r3agent.data.spool import Spool, spooled
from r3agent.errors import ArgumentError, ConfigError
from r3agent.records.record import Record
from r3agent.records.versions import is_version
from r3agent.store.entry import index_path
from r3agent.store.index import entries
from r3agent.store.lines import encode
from r3agent.store.shards import shards, store_at
from r3agent.tasks.json_values import JsonReader
from r3agent.tasks.rows import LFS, file_rows, naming
from r3agent.tasks.text_files import byte_parts, ending


class Imported(Record):
    """Report on an import."""

    directory: str
    episodes: int
    """Number of trajectories that were written."""
    stored_before: int
    """Conversations that the store has already, from an earlier import."""
    kinds: dict[str, int]
    """Written trajectories by kind of log: `chat`, `openai`, `langfuse` or `langsmith`."""
    unlabelled: int
    """Written trajectories without an outcome."""
    left_out: tuple[str, ...] = ()
    """Rows that became no trajectory, with the reason."""


@checked
def import_logs(
    files: Sequence[str | Path],
    out: str | Path,
    *,
    outcome: str | None = None,
    pass_at: float = 1.0,
    version: str | None = None,
) -> Imported:
    """Write the conversations of logs into a store or run directory, as episodes with one try each.

    The format of each row is found by its fields: plain chats, OpenAI's chat completions, Langfuse or LangSmith. Give
    files that belong together, such as observations and scores, in one call. Logs have no token ids, so the answers are
    `trainable-retokenised`. A conversation that the store has already is left alone.

    Args:
        files: files of JSON, JSON lines or Parquet, also compressed.
        outcome: name of the outcome in a row or its metadata, or of the score or feedback.
        pass_at: smallest number that passes.
        version: policy version that answered, if the run's own policy did.

    Raises:
        ConfigError: a file cannot be read, has nothing of these formats, or the logs have several scores and none is
            named; the store cannot be written.
    """
    if version is not None and not is_version(version):
        raise ArgumentError(f"version = {version!r}: no name of a version; give one such as v0000")
    with spooled() as spool:
        logs = Logs(outcome, pass_at, spool)
        for file in files:
            for where, value in _values(Path(file)):
                logs.add(where, value)
        for conversation in logs.conversations():
            try:
                made = conversation.trajectory(version)
            except ValueError as error:
                logs.left_out.append(f"{conversation.kind} {conversation.log_id}: {shorten(str(error))}")
                continue
            spool.put("made", made.trajectory_id, [conversation.kind, made.passed, encode(made).decode()])
        if next(spool.keys("made"), None) is None:
            examples = "; ".join(logs.left_out[:3]) or "there is no row"
            raise ConfigError(f"{', '.join(map(str, files))}: no conversation was found: {examples}")
        return _stored(store_at(out), spool, logs.left_out)


def _stored(store: Path, spool: Spool, left_out: list[str]) -> Imported:
    """Write what was made and is new into a shard that appears whole."""
    for entry in entries(store) if store.is_dir() else ():
        spool.add("known", entry.trajectory_id)
    kinds, counts = Counter[str](), Counter[str]()

    def lines() -> Iterator[bytes]:
        for id_, (kind, passed, line) in spool.items("made"):
            if spool.has("known", id_):
                counts["known"] += 1
                continue
            kinds[kind] += 1
            counts["open"] += passed is None
            yield line.encode()

    new = lines()
    if (first := next(new, None)) is not None:
        shard = _new_shard(store)
        try:
            write_atomically(shard, chain([first], new))
        except BaseException:
            shard.unlink(missing_ok=True)
            raise
    return Imported(
        directory=str(store),
        episodes=kinds.total(),
        stored_before=counts["known"],
        kinds=dict(kinds),
        unlabelled=counts["open"],
        left_out=tuple(left_out),
    )


def _new_shard(store: Path) -> Path:
    """Make an empty shard with the next number."""
    with disk_errors(store):
        store.mkdir(parents=True, exist_ok=True)
        number = max((int(path.stem) for path in shards(store) if path.stem.isdecimal()), default=-1)
        while True:
            number += 1
            shard = store / f"{number:05d}.jsonl"
            with suppress(FileExistsError):
                shard.touch(exist_ok=False)
                index_path(shard).unlink(missing_ok=True)  # of a shard of this name that was taken away
                return shard


def _values(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the JSON values of a file, the items of arrays one by one, or the rows of a table."""
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file")
    if ending(path.name) == ".parquet":
        yield from ((row.where, row.values) for row in file_rows(str(path)).rows)
        return
    try:
        with naming(str(path)), closing(byte_parts(path)) as parts:
            beginning = next(parts, b"")
            if beginning.startswith(LFS):
                raise ConfigError(f"{path} is a pointer of Git LFS, not the data; fetch it with: git lfs pull")
            reader = JsonReader(decoded_parts(chain([beginning], parts), str(path)), str(path))
            while reader.skip():
                where = f"{path}:{reader.line}"
                if not reader.is_array():
                    yield where, reader.value()
                    continue
                for number, item in enumerate(reader.items(), start=1):
                    yield f"{where} row {number}", item
    except ConfigError as error:
        raise ConfigError(f"{error}; nothing was imported") from error
