"""Lines of a shard: the JSON of a trajectory, with a checksum as the last key of its `metadata`.

The checksum is followed by that of the record's JSON Schema. A line whose checksum is right was validated with that
schema when it was written; where it is this release's, the line is read without another validation, and the tokens of a
span are decoded when they are used. Lines without a checksum, such as those of older releases, are validated.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Callable
from contextlib import suppress
from copy import copy, deepcopy
from functools import cache, partial
from importlib.resources import files
from types import UnionType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, get_args, get_origin
from zlib import crc32

import orjson
from pydantic import BaseModel

from r3agent.records.record import Record
from r3agent.records.trajectory import LINE_CHECKSUM, Span, Trajectory

R = TypeVar("R", bound=Record)

_SCHEMA = b"%08x" % crc32(files("r3agent.records").joinpath("trajectory.schema.json").read_bytes())
_KEY, _END = f'"{LINE_CHECKSUM}":"'.encode(), b'"}}'
_SIZE = len(_KEY) + len("01234567-01234567") + len(_END)
_TOKENS = ("prompt_token_ids", "token_ids", "logprobs")
_ARRAYS = tuple(f'"{name}":['.encode() for name in _TOKENS)


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
        if _build(Trajectory, orjson.loads(line)) == Trajectory.of_line(line):
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


def decode(line: bytes) -> Trajectory:
    """Read one line.

    Raises:
        ChecksumError: it is not the line that was written.
        ValueError: it is not JSON, or, as a pydantic `ValidationError`, no trajectory.
        SchemaVersionError: another version of r3agent wrote it.
    """
    if (problem := why_wrong(line)) is not None:
        Trajectory.of_line(line)  # whose error tells more
        raise ChecksumError(problem)
    at = _checksum_at(line)
    if at is None or not line.startswith(_SCHEMA, at + _SIZE - len(_END) - len(_SCHEMA)):
        return Trajectory.of_line(line)
    end = at - (line[at - 1] == ord(","))
    short, tokens = _without_tokens(line, end)
    data = orjson.loads(short)
    cut = [span for span in data["spans"] if span.get("prompt_token_ids") == 0]
    if len(cut) != len(tokens):  # other parts of the record have such keys
        return _build(Trajectory, orjson.loads(line[_start(line) : end] + b"}}"))
    for span, arrays in zip(cut, tokens, strict=True):
        span[_JSON] = arrays
        del span["prompt_token_ids"]
    return _build(Trajectory, data)


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


# ---- records without validation ----

_fields, _class = vars(BaseModel)["__dict__"], vars(object)["__class__"]
"""Descriptors of a record's fields and class, which `_Undecoded` hides."""

_fields_set, _extra, _private = (vars(BaseModel)[f"__pydantic_{name}__"] for name in ("fields_set", "extra", "private"))

_JSON = ""
"""Key of the JSON of the tokens among the fields of `_Undecoded`."""


class _Undecoded(Span):
    """Span with its tokens in JSON; the first use of them, or of all fields, makes it an ordinary one."""

    __class__ = property(lambda self: Span)  # pyright: ignore

    @property
    def __dict__(self) -> dict[str, Any]:  # pyright: ignore
        return _decoded(self)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            return _decoded(self)[name] if name in _TOKENS else super().__getattr__(name)

    def __copy__(self) -> Any:
        _decoded(self)
        return copy(self)

    def __deepcopy__(self, memo: Any = None) -> Any:
        _decoded(self)
        return deepcopy(self, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        _decoded(self)
        return self.__reduce_ex__(protocol)


def _decoded(span: Span) -> dict[str, Any]:
    fields = _fields.__get__(span)
    if (tokens := fields.get(_JSON)) is not None:  # it stays, because another thread may be decoding it too
        arrays = {name: tuple(ids) for name, ids in orjson.loads(b"{%b}" % tokens).items()}
        fields = {name: arrays[name] if name in arrays else fields[name] for name in Span.model_fields}
        _fields.__set__(span, fields)
        _class.__set__(span, Span)
    return fields


def _build(kind: type[R], data: dict[str, Any]) -> R:
    """Make a record of JSON that is valid."""
    plan = _plan(kind)
    fields = {**plan.defaults, **data}
    for name in plan.objects:
        if name not in data:
            fields[name] = {}
    for name, convert in plan.conversions:
        if (value := fields[name]) is not None:
            fields[name] = convert(value)
    record = kind.__new__(kind)
    _fields.__set__(record, fields)
    _fields_set.__set__(record, plan.names)
    _extra.__set__(record, None)
    _private.__set__(record, None)
    return record


class _Plan(NamedTuple):
    """Construction of a kind of record."""

    names: set[str]
    defaults: dict[str, Any]
    objects: list[str]
    """Fields whose default is an object, which no two records share."""
    conversions: list[tuple[str, Callable[[Any], Any]]]
    """Conversions of JSON to the types of the fields."""


@cache
def _plan(kind: type[Record]) -> _Plan:
    fields = {n: f for n, f in kind.model_fields.items() if kind is not _Undecoded or n not in _TOKENS}
    conversions: list[tuple[str, Callable[[Any], Any]]] = []
    for name, field in fields.items():
        annotation = field.annotation
        if get_origin(annotation) is UnionType:  # with None
            annotation = get_args(annotation)[0]
        if get_origin(annotation) is tuple:
            conversions.append((name, _tuple_of(get_args(annotation)[0])))
        elif isinstance(annotation, type) and issubclass(annotation, Record):
            conversions.append((name, partial(_build, annotation)))
    defaults = {n: None if f.is_required() or f.default_factory else f.default for n, f in fields.items()}
    objects = [name for name, default in defaults.items() if isinstance(default, dict)]
    return _Plan({*kind.model_fields}, defaults, objects, conversions)


def _tuple_of(item: Any) -> Callable[[Any], Any]:
    if item is Span:
        return lambda spans: tuple([_build(_Undecoded if _JSON in span else Span, span) for span in spans])
    if isinstance(item, type) and issubclass(item, Record):
        return lambda values: tuple([_build(item, value) for value in values])
    return tuple
