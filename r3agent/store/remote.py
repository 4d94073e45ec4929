"""Shards at a URL of fsspec, such as `s3://BUCKET/FOLDER`: what workers upload, until it is fetched into a store.

    URL/PART/SHARD-OFFSET-SIZE-CRC32.jsonl

An object store cannot append to an object, so each has the lines that a worker's shard got since the last upload, and
is written once. Its name has the size and the checksum of its content: one that is not whole is known by them, on any
file system. Credentials are those that fsspec's package for the protocol finds in the environment.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Generator
from contextlib import contextmanager, suppress
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple
from zlib import crc32

from r3agent._util.imports import require_extra
from r3agent.errors import ConfigError, R3Error, RecordError
from r3agent.records.record import new_id

logger = logging.getLogger(__name__)

WITH_FOLDERS = frozenset({"file", "local", "memory", "sftp", "ssh", "smb", "hdfs", "arrow_hdfs", "webhdfs", "ftp"})
"""Protocols whose folders have to be made; with others it could make a bucket whose name is misspelt."""

SECRET = re.compile(r"::|://[^/]*:[^/]*@|://.*\?")
"""Part of a URL that has or may have a secret, or is a chain of protocols."""

SETTING = "collect.shards"

_NAME = re.compile(r"-\d{12}-(\d+)-([0-9a-f]{8})\.jsonl$")


class RemoteShard(NamedTuple):
    """Object with the lines of a shard."""

    part: str
    """Folder of the part that it is of."""
    name: str
    path: str
    """Path in fsspec's file system."""


class RemoteShards:
    """Place of the shards of a run's workers.

    Args:
        url: folder that fsspec's package for its protocol can write.
        name: folder in it.

    Raises:
        ConfigError: the URL has a secret, or nothing installed knows its protocol.
    """

    def __init__(self, url: str, name: str = "") -> None:
        check_without_secret(url)
        require_extra("fsspec", "ray")
        import fsspec

        self.url = url
        with self._errors("not usable", ConfigError):
            self._fs, path = fsspec.url_to_fs(url)
            if not path.strip("/"):
                raise ConfigError(f"{SETTING} = {url!r}: it names no folder; write e.g. s3://BUCKET/FOLDER")
            self._root: str = f"{path.rstrip('/')}/{name}".rstrip("/")
            self.location: str = self._fs.unstrip_protocol(self._root)
            """URL of the folder, which is absolute."""
        protocols = {self._fs.protocol} if isinstance(self._fs.protocol, str) else {*self._fs.protocol}
        self._has_folders = not WITH_FOLDERS.isdisjoint(protocols)

    def check(self) -> None:
        """Write a small object, list it, read it back and remove it.

        Raises:
            ConfigError: one of these fails; the message has the remedy.
        """
        part = f"check-{new_id()}"
        with self._errors("it cannot be written, listed and read", ConfigError):
            self._put(f"{part}/{part}", b"r3agent")
            found = self._find(part)
            read = b"".join(self._fs.cat_file(path) for path in found)
            if read != b"r3agent":
                raise ConfigError(f"{SETTING} = {self.url!r}: it does not list what was just written; name another")
            self._remove(found[0])

    def upload(self, part: str, name: str, offset: int, content: bytes) -> None:
        """Write the lines of a shard that are at an offset of it.

        Raises:
            RecordError: the place cannot be written.
        """
        with self._errors("cannot write"):
            self._put(f"{part}/{name}-{offset:012d}-{len(content)}-{crc32(content):08x}.jsonl", content)

    def parts(self, part: str = "") -> list[tuple[str, list[RemoteShard]]]:
        """List the objects of each part, or of one, in order of writing.

        Raises:
            RecordError: the place cannot be listed.
        """
        with self._errors("cannot list"):
            found = [(path.split("/"), path) for path in sorted(self._find(part))]
        shards = [RemoteShard(names[-2], names[-1], path) for names, path in found]
        return [(part, [*of_part]) for part, of_part in groupby(shards, key=attrgetter("part"))]

    def read(self, shard: RemoteShard) -> bytes | None:
        """Read an object; `None`, with a warning, if it is not whole.

        Raises:
            RecordError: the place cannot be read.
        """
        with self._errors("cannot read"):
            content: bytes = self._fs.cat_file(shard.path)
        match = _NAME.search(shard.name)
        if match and (int(match[1]), int(match[2], 16)) == (len(content), crc32(content)):
            return content
        logger.warning("%s/%s/%s is not what was uploaded and is left out", self.location, shard.part, shard.name)
        return None

    def remove(self, shards: list[RemoteShard]) -> None:
        """Remove the objects of a part.

        Raises:
            RecordError: the place does not allow it.
        """
        with self._errors("cannot remove"):
            for shard in shards:
                self._remove(shard.path)

    def _put(self, name: str, content: bytes) -> None:
        path = f"{self._root}/{name}"
        if self._has_folders:
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._fs.pipe_file(path, content)

    def _find(self, part: str) -> list[str]:
        self._fs.invalidate_cache()  # others write there
        with suppress(FileNotFoundError):
            return self._fs.find(f"{self._root}/{part}".rstrip("/"))
        return []

    def _remove(self, path: str) -> None:
        self._fs.rm_file(path)
        if self._has_folders:
            with suppress(OSError):  # it has others
                self._fs.rmdir(path.rpartition("/")[0])

    @contextmanager
    def _errors(self, action: str, kind: type[R3Error] = RecordError) -> Generator[None]:
        """Convert errors of fsspec's packages, which are of many classes."""
        try:
            yield
        except R3Error:
            raise
        except Exception as error:
            cause = f"{type(error).__name__}: {error}".strip(": ")
            raise kind(f"{SETTING} = {self.url!r}: {action}: {cause}; {_remedy(error)}") from error


def check_without_secret(url: str) -> None:
    """Check that a URL has no password, query or chain of protocols.

    Raises:
        ConfigError: it has; the message does not repeat it.
    """
    if SECRET.search(url):
        raise ConfigError(
            f"{SETTING}: a URL with a password, a query or `::` would be written to r3.toml; write PROTOCOL://PLACE "
            "alone, and put credentials into the environment of the driver and of the nodes, e.g. AWS_ACCESS_KEY_ID"
        )


def _remedy(error: Exception) -> str:
    """Return what to do about an error of fsspec or of a package for a protocol."""
    if isinstance(error, ImportError):
        return "pip install the package that it names, on every node, e.g. s3fs for s3://"
    if isinstance(error, ValueError):
        return "write a URL that fsspec knows, such as s3://BUCKET/FOLDER, or a path"
    if isinstance(error, FileNotFoundError):
        return "make the bucket or container, or name another one"
    if isinstance(error, PermissionError) or "redential" in type(error).__name__:
        return (
            "allow writing, listing, reading and deleting there, and put the credentials into the environment of the "
            "driver and of the nodes, e.g. AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return "name a place that the driver and the nodes can reach, write, list and delete from"
