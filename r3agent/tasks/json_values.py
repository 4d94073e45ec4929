"""Convert values of any column to JSON: dates as ISO text, numbers of numpy as numbers, what is missing as `None`."""

from __future__ import annotations

import math
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from r3agent.errors import ConfigError

MAX_INTEGER = 2**63
"""Bound of integers: beyond it the programs that read records differ."""


def json_value(value: Any, where: str) -> Any:
    """Return a value as JSON.

    Args:
        where: row and column, for the message.

    Raises:
        ConfigError: JSON has no word for it: infinity, bytes that are no text, a picture.
    """
    match value:
        case None | bool() | str():
            return value
        case int() if abs(value) < MAX_INTEGER:
            return value
        case float() if math.isnan(value):
            return None
        case float() if math.isfinite(value):
            return float(value)  # numpy's is one too
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case Decimal() | UUID():
            return str(value)
        case dict():
            return {str(key): json_value(item, where) for key, item in value.items()}
        case list() | tuple():
            return [json_value(item, where) for item in value]
        case bytes():
            try:
                return value.decode()
            except UnicodeDecodeError:
                pass
        case _ if hasattr(value, "tolist"):  # an array or a scalar of numpy
            return json_value(value.tolist(), where)
        case _:
            pass
    raise ConfigError(
        f"{where}: a {type(value).__name__} that JSON cannot hold; leave the column out: name those to keep with "
        'task.params.info, e.g. ["level"]'
    )
