"""Text of people's files, atomic writes, disk errors as `ConfigError`, and the end of a log."""

from __future__ import annotations

import codecs
import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from errno import EACCES, EEXIST, EISDIR, ENAMETOOLONG, ENOENT, ENOTDIR, EPERM, EROFS
from itertools import chain
from pathlib import Path

from r3agent.errors import ConfigError

MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark begins it
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Encodings by the byte order mark that a file begins with."""

NEWLINE = "\n"


def decode(content: bytes, where: str, *, encoding: str = "", remedy: str = "save it as UTF-8") -> str:
    """Decode the text of a file: by its byte order mark, which is dropped, or else as UTF-8.

    Args:
        encoding: encoding to use instead.

    Raises:
        ConfigError: it is not in this encoding, or there is no such encoding.
    """
    marked = marked_encoding(content)
    encoding = marked if encoding.lower() in ("", "utf-8", "utf8", marked) else encoding
    try:
        return content.decode(encoding)
    except LookupError as error:
        raise ConfigError(f"{where}: encoding {encoding!r} is unknown to Python; name another, e.g. cp1252") from error
    except UnicodeError as error:
        at = error.start if isinstance(error, UnicodeDecodeError) else 0
        line = content.count(b"\n", 0, at) + 1
        raise ConfigError(f"{where}:{line} is not {encoding.upper()} (byte 0x{content[at]:02x}); {remedy}") from error


def marked_encoding(content: bytes) -> str:
    """Return the encoding that a byte order mark names, or else UTF-8."""
    return next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")


def decoded_parts(parts: Iterable[bytes], where: str, *, remedy: str = "save it as UTF-8") -> Iterator[str]:
    """Decode parts of a file as `decode` does its content.

    Raises:
        ConfigError: it is in another encoding, or has NUL bytes.
    """
    line, decoder = 1, None
    for part in chain(parts, [b""]):
        if decoder is None:
            encoding = marked_encoding(part)
            decoder = codecs.getincrementaldecoder(encoding)()
        try:
            text = decoder.decode(part, final=not part)
        except UnicodeDecodeError as error:
            line += error.object.count(b"\n", 0, error.start)
            byte = error.object[error.start]
            raise ConfigError(
                f"{where}:{line} is not {error.encoding.upper()} (byte 0x{byte:02x}); {remedy}"
            ) from error
        if (at := text.find("\0")) >= 0:
            raise ConfigError(f"{where}:{line + text[:at].count(NEWLINE)} has a NUL byte; remove it")
        line += text.count(NEWLINE)
        yield text


@contextmanager
def disk_errors(path: Path, *errors: type[Exception]) -> Generator[None]:
    """Convert write errors to a `ConfigError` that names the path.

    Args:
        errors: exceptions besides `OSError` that a library raises if it cannot write.

    Raises:
        ConfigError: the block cannot write to `path`.
    """
    try:
        yield
    except (OSError, *errors) as error:
        raise ConfigError(f"cannot write to {path}: {error}; {remedy_of(error)}") from error


def remedy_of(error: Exception) -> str:
    """Return the remedy for an error of writing."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (ENOTDIR, EISDIR, EEXIST):
        return "what is there is in the way: move it, or choose another directory"
    if number in (EACCES, EPERM, EROFS):
        return "allow writing there, or choose another directory"
    return "choose another directory" if number in (ENOENT, ENAMETOOLONG) else "free space or choose another directory"


def write_atomically(path: Path, content: str | bytes | Iterable[bytes]) -> None:
    """Replace a file in one step, so that readers see the old or the new content, also after a crash.

    Args:
        content: text, bytes, or parts that are made as they are written.

    Raises:
        ConfigError: the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                content = content.encode() if isinstance(content, str) else content
                file.writelines([content] if isinstance(content, bytes) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def sync_directory(directory: Path) -> None:
    """Put the names of a directory's files on disk, so that a loss of power does not lose a file that was created."""
    with suppress(OSError):  # a file system that cannot
        fd = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def last_lines(log: str, n: int = 15) -> str:
    """Return the last lines of a log, for a message."""
    return "\n".join(log.splitlines()[-n:])
