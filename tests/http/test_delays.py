"""Delays as servers write them, and the limits of a rate that they are of."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r3agent.http.delays import MAX_DELAY_S, parse_delay, until_reset_s


@pytest.mark.parametrize(
    ("value", "delay_s"),
    [
        ("7", 7.0),
        (" 0.25 ", 0.25),
        ("20ms", 0.02),
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("2m59.56s", 179.56),
        ("1h0m1.5s", 3601.5),
        ("1d2h", 93600.0),
        ("500µs", 0.0005),
        *(
            (value, None)
            for value in ("", "0", "0s", "-1", "-1s", "soon", "nan", "inf", "1e3", "6m0", "s", "٣", "1.2.3")
        ),
        ("2015-10-21T07:28:00Z", None),
        ("0001-01-01T00:00:00", None),
    ],
)
def test_parse_delay(value: str, delay_s: float | None) -> None:
    assert parse_delay(value) == (delay_s if delay_s is None else pytest.approx(delay_s))


@pytest.mark.parametrize("zone", ["Z", "+00:00", ""])
def test_a_time_is_seconds_from_now(zone: str) -> None:
    then = datetime.now(UTC) + timedelta(hours=1)
    texts = [then.strftime("%Y-%m-%dT%H:%M:%S") + zone, str(then.timestamp()), str(int(then.timestamp() * 1000))]
    assert [parse_delay(text) for text in texts] == [pytest.approx(3600, abs=60)] * 3


@given(st.text() | st.floats().map(str) | st.integers().map(str) | st.datetimes().map(str))
def test_any_value_is_a_delay_or_none(value: str) -> None:
    delay_s = parse_delay(value)
    assert delay_s is None or delay_s > 0


REQUESTS, TOKENS = "x-ratelimit-{}-requests", "x-ratelimit-{}-tokens"


@pytest.mark.parametrize(
    ("headers", "delay_s"),
    [
        ({}, None),
        ({"X-RateLimit-Reset-Requests": "1s", "X-RateLimit-Reset-Tokens": "6s"}, 6.0),
        # OpenAI: the other limit is not used up
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "1s",
                "x-ratelimit-remaining-tokens": "9",
                "x-ratelimit-reset-tokens": "6s",
            },
            1.0,
        ),
        # the request needs more tokens than are left
        (
            {
                "x-ratelimit-remaining-requests": "59",
                "x-ratelimit-reset-requests": "90s",
                "x-ratelimit-remaining-tokens": "9",
                "x-ratelimit-reset-tokens": "6s",
            },
            6.0,
        ),
        ({"x-rate-limit-reset-tokens": "55", "x-ratelimit-remaining-tokens": "0"}, 55.0),  # Azure
        ({"x-ratelimit-reset-tokens": "0", "x-ratelimit-remaining-tokens": "-1"}, None),  # Azure, at times
        ({"x-ratelimit-reset-requests-day": "33011.4", "x-ratelimit-reset-tokens-minute": "11.4"}, 11.4),  # Cerebras
        ({"x-ratelimit-remaining-requests-day": "5", "x-ratelimit-reset-requests-day": "30"}, None),
        ({"ratelimitbysize-reset": "47"}, 47.0),  # Mistral
        ({"x-ratelimit-reset-requests": f"{MAX_DELAY_S + 1}s"}, None),
        ({"x-ratelimit-limit-requests": "60", "x-reset": "5"}, None),
    ],
)
def test_time_until_the_limits_that_are_used_up_are_reset(headers: dict[str, str], delay_s: float | None) -> None:
    assert until_reset_s(headers) == delay_s


def test_reset_of_anthropic_and_openrouter_is_a_time() -> None:
    then = datetime.now(UTC) + timedelta(seconds=100)
    anthropic = {
        "anthropic-ratelimit-requests-reset": then.isoformat(),
        "anthropic-ratelimit-requests-remaining": "0",
        "anthropic-ratelimit-output-tokens-reset": (then + timedelta(seconds=100)).isoformat(),
        "anthropic-ratelimit-output-tokens-remaining": "8000",
    }
    openrouter = {"X-RateLimit-Reset": str(int(1000 * (time.time() + 100))), "X-RateLimit-Remaining": "0"}
    assert [until_reset_s(headers) for headers in (anthropic, openrouter)] == [pytest.approx(100, abs=30)] * 2
