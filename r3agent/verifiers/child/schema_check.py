"""Check with jsonschema in a worker process. Only a worker imports this."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any

from jsonschema import ValidationError
from jsonschema.validators import Draft202012Validator, extend, validator_for
from jsonschema_specifications import REGISTRY
from referencing import Resource
from referencing.jsonschema import specification_with

FORMATS = frozenset(
    {
        *("date", "date-time", "duration", "time"),
        *("email", "hostname", "idn-email", "idn-hostname", "ipv4", "ipv6"),
        *("iri", "iri-reference", "uri", "uri-reference", "uri-template"),
        *("json-pointer", "regex", "relative-json-pointer", "uuid"),
    }
)
"""Formats of draft 2020-12; earlier drafts have fewer."""


def unchecked_formats() -> list[str]:
    """Return the formats that nothing installed checks."""
    return sorted(FORMATS - set(Draft202012Validator.FORMAT_CHECKER.checkers))


def check(schema: str, formats: bool, text: str) -> str:
    """Return the violation of the schema by a text, or an empty string.

    Raises:
        jsonschema.SchemaError: the schema is invalid.
        ValueError: `formats`, and the schema has a format that its draft does not have.
        referencing.exceptions.Unresolvable: the schema has an unresolvable reference.
    """
    validator = _validator(schema, formats)
    try:
        wrong = next(iter(validator.iter_errors(json.loads(text, parse_constant=_no_constant))), None)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    return f"{wrong.json_path}: {wrong.message[:300]}" if wrong else ""


@lru_cache(maxsize=64)
def _validator(schema: str, formats: bool) -> Any:
    loaded = json.loads(schema)
    kind = validator_for(loaded, default=Draft202012Validator)
    kind.check_schema(loaded)
    if formats:
        known = kind.FORMAT_CHECKER.checkers
        specification = specification_with(str(kind.META_SCHEMA["$schema"]))
        for name in _formats_in(specification.create_resource(loaded)):
            if name not in known:
                raise ValueError(f"format {name!r} is not one of its draft: {', '.join(sorted(known))}")
    kind = extend(kind, {"multipleOf": _multiple_of})
    return kind(loaded, registry=REGISTRY, format_checker=kind.FORMAT_CHECKER if formats else None)


def _multiple_of(validator: Any, factor: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
    """Check `multipleOf` exactly: 19.99 is a multiple of 0.01, which division of floats denies."""
    if validator.is_type(value, "number") and (math.isinf(value) or Fraction(str(value)) % Fraction(str(factor))):
        yield ValidationError(f"{value!r} is not a multiple of {factor}")


def _formats_in(resource: Resource[Any]) -> Iterator[str]:
    if isinstance(resource.contents, dict) and "format" in resource.contents:
        yield resource.contents["format"]
    for inner in resource.subresources():
        yield from _formats_in(inner)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
