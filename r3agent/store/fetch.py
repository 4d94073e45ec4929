"""Fetching of uploaded shards into a store, each episode once."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from zlib import crc32

from r3agent.errors import SchemaVersionError
from r3agent.store.index import entries
from r3agent.store.lines import decode
from r3agent.store.remote import RemoteShards
from r3agent.store.shards import TrajectoryWriter


class Fetcher:
    """Appender of what workers have uploaded to a store.

    Lines of an episode that is stored are left out, and objects are removed when the others are on disk: so every
    episode is in the store once, whenever a process died. An episode whose line is damaged counts as not collected.
    """

    def __init__(self, remote: RemoteShards, store: Path) -> None:
        self._remote, self._store = remote, store
        self._whole, self._failed = set[str](), set[int]()
        for entry in entries(store, report=False):
            if entry.error is None:
                self._whole.add(entry.trajectory_id)
            else:
                self._failed.add(entry.crc)

    def fetch(self, part: str = "") -> None:
        """Fetch what there is of all parts, or of one, which must have ended.

        Raises:
            RecordError: the place cannot be listed, read or deleted from, or the store cannot be written.
            SchemaVersionError: a worker has another version of r3agent.
        """
        for name, found in self._remote.parts(part):
            with TrajectoryWriter(self._store, prefix=f"{name}-") as writer:
                for shard in found:
                    for line in BytesIO(self._remote.read(shard) or b""):
                        self._append(writer, line)
            self._remote.remove(found)

    def _append(self, writer: TrajectoryWriter, line: bytes) -> None:
        try:
            trajectory = decode(line)
        except SchemaVersionError:
            raise
        except ValueError:  # damaged before it was uploaded
            return
        crc = crc32(line.rstrip())
        if trajectory.trajectory_id in self._whole or crc in self._failed:
            return
        writer.append(trajectory, line=line)
        if trajectory.error is None:
            self._whole.add(trajectory.trajectory_id)
        else:
            self._failed.add(crc)
