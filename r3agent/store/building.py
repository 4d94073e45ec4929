"""Records made of JSON that was validated when it was written, without another validation."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy, deepcopy
from functools import cache, partial
from types import UnionType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, get_args, get_origin

import orjson
from pydantic import BaseModel

from r3agent.records.record import Record
from r3agent.records.trajectory import Span
from r3agent.store.packed import TYPES

R = TypeVar("R", bound=Record)

_fields, _class = vars(BaseModel)["__dict__"], vars(object)["__class__"]
"""Descriptors of a record's fields and class, which `_Undecoded` hides."""

_fields_set, _extra, _private = (vars(BaseModel)[f"__pydantic_{name}__"] for name in ("fields_set", "extra", "private"))

STORED = ""
"""Key of the tokens among the fields of `_Undecoded`: their JSON, or a line in Parquet and the places there."""


class _Undecoded(Span):
    """Span with its tokens as they are stored; the first use of them, or of all fields, makes it an ordinary one."""

    __class__ = property(lambda self: Span)  # pyright: ignore

    @property
    def __dict__(self) -> dict[str, Any]:  # pyright: ignore
        return _decoded(self)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            return _decoded(self)[name] if name in TYPES else super().__getattr__(name)

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
    if (tokens := fields.get(STORED)) is not None:  # it stays, because another thread may be decoding it too
        if isinstance(tokens, bytes):
            arrays = {name: tuple(ids) for name, ids in orjson.loads(b"{%b}" % tokens).items()}
        else:
            line, starts, ends = tokens
            arrays = {name: line.array(name, start, ends[name]) for name, start in starts.items()}
        fields = {**_in_order(), **fields, **arrays}
        del fields[STORED]
        _fields.__set__(span, fields)
        _class.__set__(span, Span)
    return fields


@cache
def _in_order() -> dict[str, None]:
    return dict.fromkeys(Span.model_fields)


def build(kind: type[R], data: dict[str, Any]) -> R:
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
    fields = {n: f for n, f in kind.model_fields.items() if kind is not _Undecoded or n not in TYPES}
    conversions: list[tuple[str, Callable[[Any], Any]]] = []
    for name, field in fields.items():
        annotation = field.annotation
        if get_origin(annotation) is UnionType:  # with None
            annotation = get_args(annotation)[0]
        if get_origin(annotation) is tuple:
            conversions.append((name, _tuple_of(get_args(annotation)[0])))
        elif isinstance(annotation, type) and issubclass(annotation, Record):
            conversions.append((name, partial(build, annotation)))
    defaults = {n: None if f.is_required() or f.default_factory else f.default for n, f in fields.items()}
    objects = [name for name, default in defaults.items() if isinstance(default, dict)]
    return _Plan({*kind.model_fields}, defaults, objects, conversions)


def _tuple_of(item: Any) -> Callable[[Any], Any]:
    if item is Span:
        return lambda spans: tuple([build(_Undecoded if STORED in span else Span, span) for span in spans])
    if isinstance(item, type) and issubclass(item, Record):
        return lambda values: tuple([build(item, value) for value in values])
    return tuple
