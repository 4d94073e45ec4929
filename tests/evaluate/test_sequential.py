from __future__ import annotations

import math
import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r3agent.errors import ArgumentError
from r3agent.evaluate import compare, gate
from r3agent.evaluate.sequential import course, examine, log_wealth, sequential_power
from tests.evaluate.episodes import episode

gains = st.lists(st.sampled_from([-1.0, -0.5, -0.25, 0.0, 0.25, 1 / 3, 0.5, 1.0]), max_size=60)
levels = st.sampled_from([0.025, 0.004, 0.0001])


@given(gains=st.lists(st.floats(-1, 1), min_size=1, max_size=8), level=levels)
def test_wealth_is_a_supermartingale_under_sign_flips(gains: list[float], level: float) -> None:
    """Average the wealth over all signs of the differences: at no task is it above 1."""
    signs = 1 - 2 * ((np.arange(2 ** len(gains))[:, None] >> np.arange(len(gains))) & 1)
    wealth = np.exp(log_wealth(signs * np.array(gains), planned=20, level=level)).mean(axis=0)
    assert wealth == pytest.approx(np.ones(len(gains)))


@given(gains=gains, level=levels, more=st.sampled_from([-1.0, -0.5]), share=st.floats(0.05, 0.95))
def test_wealth_does_not_grow_on_average_however_skewed(
    gains: list[float], level: float, more: float, share: float
) -> None:
    """The next difference is `more` with a probability, else what makes the mean 0, up to rounding."""
    other = -more * share / (1 - share)
    if other > 1:
        return
    now = math.exp(log_wealth(gains, planned=100, level=level)[-1]) if gains else 1.0
    after = [math.exp(log_wealth([*gains, d], planned=100, level=level)[-1]) for d in (more, other)]
    assert share * after[0] + (1 - share) * after[1] <= now * (1 + 1e-9)


@given(gains=gains, level=levels, cuts=st.sets(st.integers(0, 60)))
def test_evidence_is_the_same_in_any_batches(gains: list[float], level: float, cuts: set[int]) -> None:
    """A look that finds the evidence is followed by looks that do, and what a look sees depends on its tasks alone."""
    looks = [examine(gains[:n], planned=80, level=level) for n in sorted({*cuts, len(gains)}) if n <= len(gains)]
    found = [look.found for look in looks]
    assert found == sorted(found)
    assert looks[-1] == examine(gains, planned=80, level=level)
    assert [look.e_value for look in looks] == sorted(look.e_value for look in looks)


@given(gains=gains)
def test_confidence_sequence_agrees_with_the_test(gains: list[float]) -> None:
    found, flipped = (examine(values, planned=80, level=0.025) for values in (gains, [-g for g in gains]))
    assert -100 <= found.low <= found.high <= 100
    assert (found.low, found.high) == pytest.approx((-flipped.high, -flipped.low), abs=0.02)
    if found.low > 0.05:
        assert found.found
    if found.found and not flipped.found:
        assert found.low > -0.05


def test_confidence_sequence_covers_the_mean_at_every_look() -> None:
    rng = random.Random(0)
    missed = 0
    for _ in range(100):
        gains = [rng.choice([0.06, 0.06, 0.06, 0.06, 0.06, 0.06, 0.06, 0.06, 0.06, -0.5]) for _ in range(120)]
        looks = [examine(gains[:n], planned=120, level=0.025) for n in range(20, 121, 20)]
        missed += not all(look.low <= 0.4 <= look.high for look in looks)
    assert missed <= 5


def test_equal_versions_are_seldom_promoted_and_given_up_early() -> None:
    rng = np.random.default_rng(0)
    gains_RN = rng.choice([-1.0, 0.0, 1.0], (1000, 300), p=[0.1, 0.8, 0.1])
    wealth_RN = log_wealth(gains_RN, planned=300, level=0.025)
    assert (wealth_RN.max(axis=1) >= math.log(1 / 0.025)).mean() <= 0.025 + 2 * 0.005
    assert sum(examine(gains[:200].tolist(), planned=300, level=0.025).futile for gains in gains_RN[:100]) > 50


def test_power_is_as_claimed() -> None:
    rng = np.random.default_rng(0)
    for up, down in ((0.13, 0.07), (0.035, 0.01), (0.3, 0.2)):
        gains_RN = rng.choice([-1.0, 0.0, 1.0], (1000, 600), p=[down, 1 - up - down, up])
        seen = (log_wealth(gains_RN, planned=600, level=0.025).max(axis=1) >= math.log(1 / 0.025)).mean()
        assert seen == pytest.approx(sequential_power(up - down, up + down, planned=600, level=0.025), abs=0.05)


def test_a_clear_gain_is_found_early_and_a_clear_loss_given_up() -> None:
    rng = random.Random(0)
    gains = [float(rng.random() < 0.5) - float(rng.random() < 0.1) for _ in range(100)]
    better, worse = (examine(values, planned=750, level=0.025) for values in (gains, [-g for g in gains]))
    assert (better.found, better.futile) == (True, False)
    assert (worse.found, worse.futile) == (False, True)
    assert not examine([-g for g in gains], planned=100, level=0.025).futile  # all tasks are done


def test_a_lift_out_of_reach_is_given_up_although_the_gain_is_found() -> None:
    gains = [1.0, 0.0, 0.0] * 40
    assert not examine(gains, planned=300, level=0.025, min_gain=0.1).futile
    out_of_reach = examine(gains, planned=300, level=0.025, min_gain=0.7)
    assert (out_of_reach.found, out_of_reach.futile) == (True, True)


def test_gate_goes_on_after_tasks_that_only_errored() -> None:
    before, after = ([episode("t0", False, error="PolicyError", version=v)] for v in ("v0000", "v0001"))
    limits: Any = {"min_lift": 0, "max_regression": 2, "alpha": 0.05}
    decision = gate(compare(before, after, order=["t0", "t1", "t2"]), **limits)
    assert (decision.promote, decision.final) == (False, False)
    assert gate(compare(before, after), **limits).final  # without an order, no task is left
    with pytest.raises(ArgumentError, match="alpha = 0"):
        gate(compare(before, after), **{**limits, "alpha": 0.0})


def test_nothing_to_examine_is_no_evidence() -> None:
    found = examine([], planned=10, level=0.025)
    assert (found.e_value, found.low, found.high, found.found, found.futile) == (1.0, -100, 100, False, False)


def test_course_ends_with_the_whole_test() -> None:
    gains_N = [1.0, 0.0, 1.0, -1.0, 1.0] * 30
    found = course(gains_N, planned=200, level=0.025, points=7)
    assert found[-1] == examine(gains_N, planned=200, level=0.025)
    assert len(found) == 7
    assert [e.e_value for e in found] == sorted(e.e_value for e in found)
    assert all(later.low >= earlier.low for earlier, later in pairwise(found))
    assert [e.n_tasks for e in course(gains_N[:2], planned=200, level=0.025)] == [1, 2]
    assert course([], planned=200, level=0.025) == []
