"""Journal of open episodes: a gateway that is killed loses none of the calls that it has answered.

Each answered call and each verdict is one line of a file beside the shards, which ends with the process. The next
gateway of the same store finds the file of one that was killed, and stores its episodes. A call that is under way when
the process is killed is lost, and so is a line that a crash of the machine keeps from the disk.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from pydantic import ValidationError

from r3agent.gateway.episodes import OpenEpisode
from r3agent.http.events import parse_json
from r3agent.records.json_values import json_bytes
from r3agent.records.trajectory import Span, Task, Trajectory, new_id
from r3agent.store.reading import lines_of
from r3agent.store.shards import shards

logger = logging.getLogger(__name__)

SUFFIX = ".journal"

MAX_BYTES = 64 * 2**20
"""Size after which a journal is written anew with the open episodes alone."""

STORE_S = 600.0
"""Time that the disk gets for what waits for it."""

HEAD = 4096
"""Bytes at the beginning of a line of a shard that have its id."""


class Journal:
    """Journal of one process.

    Args:
        directory: the store.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / f"gateway-{new_id()}{SUFFIX}"
        self._fd = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._written: WeakKeyDictionary[OpenEpisode, tuple[Task, tuple[Span, ...]]] = WeakKeyDictionary()
        """Task and spans of each episode that the file has."""
        self._size = 0

    def note(self, entry: OpenEpisode) -> None:
        """Write the spans of an episode that the file does not have, or has without their verdict."""
        spans, (task, written) = entry.episode.spans, self._written.get(entry, (None, ()))
        news = [span for i, span in enumerate(spans) if i >= len(written) or span is not written[i]]
        if not news:
            return
        recorded = entry.episode.trajectory
        is_known = task == recorded.task
        head = {"trajectory_id": recorded.trajectory_id} if is_known else recorded.model_dump(exclude={"spans"})
        line = {**head, "spans": [span.model_dump(mode="json") for span in news]}
        try:
            content = json_bytes(line)
            n_written = os.write(self._fd, b"\n%s\n" % content)  # the line before may lack its end
            self._size += n_written
            if n_written < len(content) + 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._written[entry] = recorded.task, spans
        except OSError as error:  # the answers are in memory all the same, and written with the next
            logger.warning("%s: an answer is not in the journal: %s", self.path, error)

    @property
    def is_full(self) -> bool:
        return self._size > MAX_BYTES

    def remove(self) -> None:
        """Remove the file, once all its episodes are stored or in another one."""
        self.path.unlink(missing_ok=True)
        os.close(self._fd)


def left_behind(directory: Path) -> Iterator[tuple[Path, list[Trajectory]]]:
    """Yield the journals of gateways that were killed, each with its episodes that are not stored."""
    for path in sorted(directory.glob(f"gateway-*{SUFFIX}")):
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # its gateway is running
                continue
            found = _read(file)
            yield path, [found[trajectory_id] for trajectory_id in found.keys() - _stored(directory, found)]


def _read(lines: Iterable[bytes]) -> dict[str, Trajectory]:
    """Put the lines of a journal together, the last without its end left out."""
    heads: dict[str, dict[str, Any]] = {}
    spans: dict[str, dict[str, Any]] = {}
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):
            part = parse_json(line)
            heads.setdefault(part["trajectory_id"], {}).update(part)
            spans.setdefault(part["trajectory_id"], {}).update({span["span_id"]: span for span in part["spans"]})
    found: dict[str, Trajectory] = {}
    for trajectory_id, head in heads.items():
        try:
            found[trajectory_id] = Trajectory.model_validate({**head, "spans": list(spans[trajectory_id].values())})
        except ValidationError as error:
            logger.warning("an episode of a journal is no trajectory: %s", error.errors()[0]["msg"])
    return found


def _stored(directory: Path, ids: Iterable[str]) -> set[str]:
    """Return those ids whose trajectory is in the store."""
    wanted = {trajectory_id: trajectory_id.encode() for trajectory_id in ids}
    found: set[str] = set()
    for path in shards(directory) if wanted else ():
        for line in lines_of(path):
            head = line[:HEAD]
            found |= {trajectory_id for trajectory_id, text in wanted.items() if text in head}
    return found
