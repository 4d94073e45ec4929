"""Delays that servers ask for: in Retry-After, or else until a limit of their rate that is used up is reset.

Retry-After        7, 0.5, or a date; also `retry-after-ms`, and keys of the body
OpenAI, Groq       x-ratelimit-reset-requests: 1s, x-ratelimit-reset-tokens: 6m0s, 2m59.56s, 20ms
Azure, Cerebras    x-ratelimit-reset-tokens: 55, x-rate-limit-reset-tokens: 55, x-ratelimit-reset-requests-day: 330.5
Anthropic          anthropic-ratelimit-input-tokens-reset: 2026-01-31T12:00:00Z
OpenRouter         X-RateLimit-Reset: 1767182400000, which is Unix time, in the body
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MAX_DELAY_S = 300.0
"""Longest delay in seconds after which a request is sent again."""

OF_DELAYS = re.compile("retry-after|rate-?limit", re.IGNORECASE)
"""Names of headers that a delay is found by."""

UNITS_S = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}

DURATION = re.compile(r"(\d+(?:\.\d*)?)(d|h|ms|m|s|us|µs|ns)")

SINCE_1970_S, SINCE_1970_MS = 1e9, 1e12
"""Numbers from which a delay is a time, in seconds or milliseconds."""


def parse_delay(value: str) -> float | None:
    """Parse seconds, a duration of Go, Unix time, or a date as in RFC 9110 or 3339, which is UTC if it names no zone.

    Returns:
        Seconds from now; `None` for any other value, and if there is no delay.
    """
    value, delay_s = value.strip(), 0.0
    if re.fullmatch(r"\d+\.?\d*|\.\d+", value, re.ASCII):
        delay_s = float(value)
        if delay_s >= SINCE_1970_S:
            delay_s = (delay_s / 1000 if delay_s >= SINCE_1970_MS else delay_s) - time.time()
    elif value and not DURATION.sub("", value):
        delay_s = sum(float(number) * UNITS_S[unit] for number, unit in DURATION.findall(value))
    elif (date := _date(value)) is not None:
        with suppress(OverflowError):
            delay_s = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time()
    return delay_s if delay_s > 0 else None


def until_reset_s(headers: Mapping[str, str]) -> float | None:
    """Return the time until the limits that are used up are reset, in seconds; `None` if the headers say none.

    A limit that another header says is left counts for nothing, but one of tokens does if no other is used up, because
    a request may need more than are left. A time beyond `MAX_DELAY_S` is none: many servers tell when all of a limit is
    left again, and answer much sooner.
    """
    named = {name.lower().replace("rate-limit", "ratelimit"): value for name, value in headers.items()}
    used_up, short = list[float](), list[float]()
    for name, value in named.items():
        parts = name.split("-")
        if not any("ratelimit" in part for part in parts) or "reset" not in parts:
            continue
        if (delay_s := parse_delay(value)) is None or delay_s > MAX_DELAY_S:
            continue
        left = _number(named.get("-".join("remaining" if part == "reset" else part for part in parts)))
        if left is None or left <= 0:
            used_up.append(delay_s)
        elif "tokens" in parts:
            short.append(delay_s)
    return max(used_up or short, default=None)


def _date(value: str) -> datetime | None:
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        with suppress(ValueError):
            return parse(value)
    return None


def _number(value: str | None) -> float | None:
    with suppress(ValueError, TypeError):
        return float(value or "")
    return None
