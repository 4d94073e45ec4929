"""Cost of recorded calls."""

from __future__ import annotations

import math
from typing import Any

import pytest

from r3agent import Prices, Span
from r3agent.errors import ArgumentError
from r3agent.policy.parse import generations

PRICES = Prices(prompt=1, cached=0.5, sampled=10)


def call(**fields: Any) -> Span:
    counted = {"prompt_tokens": 1_000_000, "completion_tokens": 100_000}
    return Span(**{"label": "attempt", "text": "", "model": "m", **counted, **fields})


@pytest.mark.parametrize(
    ("spans", "cost"),
    [
        ([], 0),
        ([call()], 2),
        ([call(cached_tokens=500_000)], 1.75),
        ([call(cached_tokens=9_000_000)], 1.5),
        ([call(), call()], 4),
        ([call(latency_s=1.5), call(latency_s=1.5)], 3),
        ([call(latency_s=1.5), call(latency_s=1.6)], 4),
        ([call(latency_s=1.5), call(latency_s=1.5, parent_id="another")], 4),
        ([call(), call(completion_tokens=None)], None),
        ([call(latency_s=1.5, completion_tokens=None, sibling_tokens=100_000)] * 2, 2),
        ([call(latency_s=1.5), call(latency_s=1.5, completion_tokens=None, sibling_tokens=100_000)], 2),
        ([call(), call(completion_tokens=None, finish_reason="context_overflow")], 2),
    ],
)
def test_cost_is_that_of_all_calls(spans: list[Span], cost: float | None) -> None:
    assert PRICES.cost(spans) == (None if cost is None else pytest.approx(cost))


def test_cached_tokens_cost_as_others_without_a_price() -> None:
    assert Prices(prompt=1, sampled=0).cost([call(cached_tokens=1_000_000)]) == 1


@pytest.mark.parametrize(
    ("usage", "cached"),
    [
        ({"prompt_tokens_details": {"cached_tokens": 7}}, 7),
        ({"prompt_tokens_details": None}, None),
        ({"prompt_tokens_details": {"cached_tokens": "many"}}, None),
        ({}, None),
    ],
)
def test_cached_tokens_are_those_of_the_usage(usage: dict[str, Any], cached: int | None) -> None:
    answer = {"choices": [{"message": {"content": "hi"}}], "usage": {"prompt_tokens": 9, **usage}}
    assert generations(answer, {"model": "m"}, 1)[0].cached_tokens == cached


@pytest.mark.parametrize("fields", [{"prompt": -1, "sampled": 1}, {"prompt": 1}, {"prompt": math.inf, "sampled": 1}])
def test_prices_refuse_what_is_no_price(fields: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="Prices"):
        Prices(**fields)
