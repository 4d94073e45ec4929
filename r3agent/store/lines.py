"""Lines of a shard: the JSON of a trajectory, with a checksum as the last key of its `metadata`.

The checksum is followed by that of the record's JSON Schema. A line whose checksum is right was validated with that
schema when it was written; where it is this release's, the line is read without another validation, and the tokens of a
span are decoded when they are used. Lines without a checksum, such as those of older releases, are validated. Where
Parquet has the tokens in binary, the line's checksum was verified when it was written, and pages have their own.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from contextlib import suppress
from importlib.resources import files
from zlib import crc32

import orjson

from r3agent.records.trajectory import LINE_CHECKSUM, Trajectory
from r3agent.store.building import STORED, build
from r3agent.store.packed import TYPES, Line, Packed

_SCHEMA = b"%08x" % crc32(files("r3agent.records").joinpath("trajectory.schema.json").read_bytes())
_KEY, _END = f'"{LINE_CHECKSUM}":"'.encode(), b'"}}'
_SIZE = len(_KEY) + len("01234567-01234567") + len(_END)
_ARRAYS = tuple(f'"{name}":['.encode() for name in TYPES)


class ChecksumError(ValueError):
    """A line is not the one that was written."""


def encode(trajectory: Trajectory) -> bytes:
    """Write one line, with a checksum if the same record is read back without validation.

    Raises:
        RecordError: as `Trajectory.line`.
    """
    with suppress(ValueError, RecursionError):  # ValueError includes pydantic's errors
        line = trajectory.model_dump_json().encode()
        if Trajectory.model_validate(orjson.loads(line)) == trajectory:
            return _stamped(line)
    line = trajectory.line()
    with suppress(ValueError):
        if build(Trajectory, orjson.loads(line)) == Trajectory.of_line(line):
            return _stamped(line.rstrip())
    return line


def encode_json(text: bytes) -> bytes:
    """Write one line from the JSON of a trajectory.

    Raises:
        ValueError: it is not JSON, or, as a pydantic `ValidationError`, no trajectory.
        SchemaVersionError: as `Trajectory.of_line`.
    """
    trajectory = Trajectory.model_validate(orjson.loads(text))
    return _stamped(text) if trajectory.model_dump_json().encode() == text else encode(trajectory)


def decode(line: Line) -> Trajectory:
    """Read one line.

    Raises:
        ChecksumError: it is not the line that was written.
        ValueError: it is not JSON, or, as a pydantic `ValidationError`, no trajectory.
        SchemaVersionError: another version of r3agent wrote it.
    """
    if isinstance(line, Packed):
        return _unpacked(line) or decode(bytes(line))
    if (problem := why_wrong(line)) is not None:
        Trajectory.of_line(line)  # whose error tells more
        raise ChecksumError(problem)
    at = _checksum_at(line)
    if at is None or not _is_validated(line, at):
        return Trajectory.of_line(line)
    end = at - (line[at - 1] == ord(","))
    short, tokens = _without_tokens(line, end)
    data = orjson.loads(short)
    cut = [span for span in data["spans"] if span.get("prompt_token_ids") == 0]
    if len(cut) != len(tokens):  # other parts of the record have such keys
        return build(Trajectory, orjson.loads(line[_start(line) : end] + b"}}"))
    for span, arrays in zip(cut, tokens, strict=True):
        span[STORED] = arrays
        del span["prompt_token_ids"]
    return build(Trajectory, data)


def crc_of(line: Line) -> int:
    """Compute the CRC-32 of a line without its end."""
    if isinstance(line, Packed):
        if (at := _checksum_at(line.json)) is None:
            line = bytes(line)
        else:  # what is before the checksum has it
            end = line.json[at:].rstrip()
            return crc32(end, int(end[len(_KEY) :].partition(b"-")[0], 16))
    return crc32(line.rstrip())


def why_wrong(line: bytes) -> str | None:
    """Return why a line is not the one that was written; `None` if its checksum is right, or it has none."""
    if (at := _checksum_at(line)) is None:
        return None
    with memoryview(line) as view:
        right = b"%08x-" % crc32(view[_start(line) : at])
    if line.startswith(right, at + len(_KEY)):
        return None
    return "its checksum is another line's: it was changed after it was written, or is damaged"


def _checksum_at(line: bytes) -> int | None:
    """Return the place of the checksum in a line."""
    at = line.rfind(_KEY, max(0, len(line) - _SIZE - 2))
    return at if at >= 0 and line[at + _SIZE - len(_END) :].rstrip() == _END else None


def _is_validated(line: bytes, at: int) -> bool:
    """Return True if a line was validated with this release's schema; `at` is the place of its checksum."""
    return line.startswith(_SCHEMA, at + _SIZE - len(_END) - len(_SCHEMA))


def _start(line: bytes) -> int:
    return len(BOM_UTF8) if line.startswith(BOM_UTF8) else 0


def _stamped(line: bytes) -> bytes:
    content = line.removesuffix(b"}}")
    content += b"" if content.endswith(b"{") else b","
    return b"%b%b%08x-%b%b\n" % (content, _KEY, crc32(content), _SCHEMA, _END)


def _without_tokens(line: bytes, end: int) -> tuple[bytes, list[bytes]]:
    """Cut the tokens out of a line up to `end`, the checksum: they are most of it.

    `"prompt_token_ids":0` stands for the three arrays.
    """
    kept, tokens, at = list[bytes](), list[bytes](), _start(line)
    prompt, *others = _ARRAYS
    while (start := line.find(prompt, at, end)) >= 0:
        stop = line.find(b"]", start, end) + 1
        for key in others:
            stop = line.find(b"]", stop, end) + 1 if line.startswith(b"," + key, stop) else 0
            if not stop:
                return line[_start(line) : end] + b"}}", []
        kept += line[at:start], b'"prompt_token_ids":0'
        tokens.append(line[start:stop])
        at = stop
    return b"".join((*kept, line[at:end], b"}}")), tokens


def _unpacked(line: Packed) -> Trajectory | None:
    """Read a line of which Parquet has the tokens; `None` if other parts of the record have such keys, or no schema."""
    at = _checksum_at(line.json)
    if at is None or not _is_validated(line.json, at):
        return None
    data = orjson.loads(line.json)
    del data["metadata"][LINE_CHECKSUM]
    ends = dict.fromkeys(TYPES, 0)
    for span in data["spans"]:
        starts = dict[str, int]()
        for name in TYPES:
            if type(length := span.get(name)) is int:
                starts[name] = ends[name]
                ends[name] += length
                del span[name]
            elif length == []:
                span[name] = ()
        if starts:
            span[STORED] = line, starts, ends.copy()
    return build(Trajectory, data) if line.lengths() == ends else None
