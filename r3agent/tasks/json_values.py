"""Conversion of column values to JSON: dates as ISO text, numpy's numbers as numbers, missing values as `None`."""

from __future__ import annotations

import math
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from r3agent.errors import ConfigError

MAX_INTEGER = 2**63
"""Limit of integers, beyond which readers of records disagree."""


def json_value(value: Any, where: str) -> Any:
    """Convert a value to JSON.

    Args:
        where: row and column, for the message.

    Raises:
        ConfigError: JSON cannot represent it: infinity, bytes that are not text, an image.
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
        case _ if hasattr(value, "tolist"):  # numpy's array or scalar
            return json_value(value.tolist(), where)
        case _:
            pass
    raise ConfigError(
        f"{where}: a {type(value).__name__} that JSON cannot hold; leave the column out: name those to keep with "
        'task.params.info, e.g. ["level"]'
    )
