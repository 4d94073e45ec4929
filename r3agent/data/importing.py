"""Import of logs that another program wrote: each conversation becomes a trajectory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from r3agent._util.checked import checked
from r3agent._util.messages import shorten
from r3agent.data.log_formats import Logs
from r3agent.errors import ArgumentError, ConfigError
from r3agent.records.record import Record
from r3agent.records.versions import is_version
from r3agent.store.shards import TrajectoryWriter, read, shards, store_at
from r3agent.tasks.json_values import json_stream
from r3agent.tasks.rows import LFS, file_rows
from r3agent.tasks.text_files import ending, file_text, unpacked


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
    logs = Logs(outcome, pass_at)
    for file in files:
        for where, value in _values(Path(file)):
            logs.add(where, value)
    made = {}
    for conversation in logs.conversations():
        try:
            trajectory = conversation.trajectory(version)
            made[trajectory.trajectory_id] = trajectory
        except ValueError as error:
            logs.left_out.append(f"{conversation.kind} {conversation.log_id}: {shorten(str(error))}")
    if not made:
        examples = "; ".join(logs.left_out[:3]) or "there is no row"
        raise ConfigError(f"{', '.join(map(str, files))}: no conversation was found: {examples}")
    store = store_at(out)
    known = {t.trajectory_id for t in read(store)} if store.is_dir() and shards(store) else set[str]()
    new = [trajectory for id_, trajectory in made.items() if id_ not in known]
    with TrajectoryWriter(store) as writer:
        for trajectory in new:
            writer.append(trajectory)
    return Imported(
        directory=str(store),
        episodes=len(new),
        stored_before=len(made) - len(new),
        kinds=dict(Counter(str(trajectory.metadata["imported"]) for trajectory in new)),
        unlabelled=sum(trajectory.passed is None for trajectory in new),
        left_out=tuple(logs.left_out),
    )


def _values(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the JSON values of a file, or the rows of a table."""
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file")
    if ending(path.name) == ".parquet":
        yield from ((row.where, row.values) for row in file_rows(str(path)).rows)
        return
    content = unpacked(path.read_bytes())
    if content.startswith(LFS):
        raise ConfigError(f"{path} is a pointer of Git LFS, not the data; fetch it with: git lfs pull")
    try:
        for number, value in json_stream(file_text(content, str(path), ""), str(path)):
            yield f"{path}:{number}", value
    except ConfigError as error:
        raise ConfigError(f"{error}; nothing was imported") from error
