"""Upload of a worker's shards while it writes them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from r3agent.errors import R3Error, RecordError
from r3agent.store.remote import RemoteShards
from r3agent.store.shards import shards

logger = logging.getLogger(__name__)

EVERY_S = 10.0
"""Seconds between two uploads: the death of a worker loses the episodes since the last one."""

MAX_BYTES = 64 << 20
"""Size of an object, unless one line is longer."""

FAILURES = 6
"""Number of uploads in a row that may fail before a worker samples no more."""


@contextmanager
def uploading(
    remote: RemoteShards, part: str, store: Path, *, every_s: float = EVERY_S
) -> Generator[Callable[[], None]]:
    """Upload the lines of new shards of a store, at intervals and at the end, however it ends.

    Earlier objects of the part, by a worker that died, are read into the store first.

    Yields:
        Check to call after each episode; it raises the error of the last upload if too many have failed.

    Raises:
        RecordError: an object cannot be read, or the last upload fails.
    """
    upload, end = _Upload(remote, part, store), Event()

    def work() -> None:
        while not end.wait(every_s):
            try:
                upload()
                upload.failures = 0
            except R3Error as error:
                upload.failures, upload.error = upload.failures + 1, error
                logger.warning("%s", error)

    thread = Thread(target=work, daemon=True, name="r3agent-upload")
    thread.start()
    try:
        yield upload.check
    finally:
        end.set()
        thread.join()
        upload()


class _Upload:
    """Uploader of what the shards of a store have got since the last call."""

    def __init__(self, remote: RemoteShards, part: str, store: Path) -> None:
        self._remote, self._part, self._store = remote, part, store
        store.mkdir(parents=True, exist_ok=True)
        for shard in (shard for _, found in remote.parts(part) for shard in found):
            if (content := remote.read(shard)) is not None:
                (store / shard.name).write_bytes(content)
        self._read = {path.name for path in shards(store)}
        self._done: dict[str, int] = {}
        self.failures = 0
        self.error: R3Error | None = None

    def __call__(self) -> None:
        for path in shards(self._store):
            if path.name not in self._read:
                for content in _lines(path, self._done.get(path.name, 0)):
                    offset = self._done.get(path.name, 0)
                    self._remote.upload(self._part, path.stem, offset, content)
                    self._done[path.name] = offset + len(content)

    def check(self) -> None:
        if self.failures >= FAILURES:
            raise RecordError(f"{self.failures} uploads failed: {self.error}") from self.error


def _lines(path: Path, offset: int) -> Iterator[bytes]:
    """Yield the complete lines of a shard from an offset on, several at a time."""
    lines, size = list[bytes](), 0
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):  # it is being written
                break
            if lines and size + len(line) > MAX_BYTES:
                yield b"".join(lines)
                lines, size = [], 0
            lines.append(line)
            size += len(line)
    if lines:
        yield b"".join(lines)
