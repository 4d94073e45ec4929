"""Base classes of all records: frozen, strict about unknown fields, and versioned if they are stored in files."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from r3agent._util.messages import explain
from r3agent.errors import ArgumentError, SchemaVersionError


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


class VersionedRecord(Record):
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


def new_id() -> str:
    """Make an id for a span or a trajectory."""
    return uuid4().hex[:16]
