"""Check with jsonschema in a worker process. Only a worker imports this."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from jsonschema.validators import Draft202012Validator, validator_for
from jsonschema_specifications import REGISTRY


def check(schema: str, formats: bool, text: str) -> str:
    """Return the violation of the schema by a text, or an empty string.

    Raises:
        jsonschema.SchemaError: the schema is invalid.
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
    return kind(loaded, registry=REGISTRY, format_checker=kind.FORMAT_CHECKER if formats else None)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
