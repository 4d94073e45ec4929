"""Base classes of all records: frozen, strict about unknown fields, and versioned if they are stored in files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from r3agent._util.messages import explain
from r3agent.errors import ArgumentError, RecordError, SchemaVersionError
from r3agent.records.json_values import json_value, parse_json, well_formed

MENDED = "mended"
"""Metadata key of a record that was changed so that it could be stored: the places, and what was there."""


class Record(BaseModel):
    """Base of all records: frozen, and strict about unknown fields.

    Raises:
        ArgumentError: a field is unknown, missing or out of range; `model_validate` raises pydantic's own error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def __init__(self, /, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise ArgumentError(explain(error, type(self), root=type(self).__name__)) from None

    # Parsing of a record within another does not call it.
    __init__.__pydantic_base_init__ = True  # pyright: ignore[reportFunctionMemberAccess]


class StoredRecord(Record):
    """Base of what is stored: texts and free-form values become JSON, except for numbers that are not finite."""

    @model_validator(mode="before")
    @classmethod
    def _of_json(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        fields: dict[str, Any] = {
            name: value if not isinstance(value, str) or value.isascii() else well_formed(value)
            for name, value in data.items()
        }
        for name, may_be_none in _free_form(cls).items():
            if name not in fields:
                continue
            if fields[name] is None and not may_be_none:  # `datasets` reads an object that is missing as null
                del fields[name]
            else:
                fields[name] = _converted(fields[name])
        return fields


class VersionedRecord(StoredRecord):
    """Base of the records in files; the default of a subclass's `schema_version` is the version that it can read.

    Raises:
        SchemaVersionError: the data has another version.
    """

    @model_validator(mode="before")
    @classmethod
    def _check_schema_version(cls, data: Any) -> Any:
        known = cls.model_fields["schema_version"].default
        if isinstance(data, dict) and (found := data.get("schema_version", known)) != known:
            raise SchemaVersionError(
                f"schema_version = {found!r}: this r3agent reads version {known}; "
                "open the run with the version of r3agent that wrote it, or use a new directory"
            )
        return data

    def line(self) -> bytes:
        """Write one line of JSON, which `of_line` reads back as an equal record.

        Parts that JSON cannot hold, which are infinities, NaN and what `model_copy` brought in, are mended, and noted
        in `metadata` under `MENDED`.

        Raises:
            RecordError: it cannot be mended.
        """
        with suppress(ValueError, RecursionError):  # ValueError includes pydantic's errors
            line = self.model_dump_json().encode() + b"\n"
            if self.of_line(line) == self:
                return line
        losses: list[str] = []
        data = json_value(self, finite=True, losses=losses)
        if losses and isinstance(data.get("metadata"), dict):
            data["metadata"] = {**data["metadata"], MENDED: [*data["metadata"].get(MENDED, ()), *losses]}
        try:
            return type(self).model_validate(data).model_dump_json().encode() + b"\n"
        except ValidationError as error:
            raise RecordError(f"not a {type(self).__name__.lower()}: {explain(error, type(self))}") from None

    @classmethod
    def of_line(cls, line: bytes) -> Self:
        """Read a line.

        Raises:
            ValueError: it is not JSON, or, as a pydantic `ValidationError`, not such a record.
            SchemaVersionError: another version of r3agent wrote it.
        """
        return cls.model_validate(parse_json(line))


@cache
def _free_form(cls: type[BaseModel]) -> dict[str, bool]:
    """Map the names of the fields with values of any type to True if their default is `None`."""

    def is_free(annotation: Any) -> bool:
        return annotation is Any or any(map(is_free, get_args(annotation)))

    return {name: field.default is None for name, field in cls.model_fields.items() if is_free(field.annotation)}


def _converted(value: Any) -> Any:
    """Convert the value of a free-form field; pydantic refuses what is no object where there must be one."""
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, list | tuple):
        return type(value)([json_value(item) if _is_mapping(item) else item for item in value])
    return json_value(value) if _is_mapping(value) else value


def _is_mapping(value: Any) -> bool:
    return type(value) is dict or isinstance(value, Mapping)  # the second takes ten times as long


def new_id() -> str:
    """Make an id for a span or a trajectory."""
    return os.urandom(8).hex()
