from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, permutation_test

from r3agent.evaluate import wilson
from r3agent.evaluate.statistics import difference, rate, sign_flip_test

rates = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=40)
changes = st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), min_size=1, max_size=40)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_of_newcombe_1998(k: int, n: int, low: float, high: float):
    assert wilson(k, n) == pytest.approx((low, high), abs=5e-5)


@given(n=st.integers(1, 500), data=st.data())
def test_wilson_is_scipys(n: int, data: st.DataObject):
    k = data.draw(st.integers(0, n))
    expected = binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_rate_with_one_sample_per_task_is_wilsons():
    found = rate([1.0] * 81 + [0.0] * 182, 263)
    assert (found.low, found.high) == pytest.approx(wilson(81, 263))
    assert found.rate == pytest.approx(81 / 263)


@given(values=rates, samples=st.integers(1, 4))
def test_rate_is_in_its_interval_that_samples_never_widen(values: list[float], samples: int):
    few, many = rate(values, len(values)), rate(values, samples * len(values))
    assert 0 <= many.low <= many.rate + 1e-9
    assert many.rate - 1e-9 <= many.high <= 1
    assert many.high - many.low <= few.high - few.low + 1e-9


def test_samples_of_one_task_are_not_independent():
    alike = rate([1.0] * 30 + [0.0] * 70, 400)
    apart = rate([0.25] * 80 + [0.5] * 20, 400)
    assert alike.rate == pytest.approx(apart.rate) == pytest.approx(0.3)
    assert (alike.low, alike.high) == pytest.approx(wilson(30, 100))
    assert (apart.low, apart.high) == pytest.approx(wilson(120, 400))


def test_mcnemars_exact_p():
    found = difference([1.0] * 12 + [-1.0] * 2 + [0.0] * 86)
    assert found.p_value == pytest.approx(2 * (1 + 14 + 91) / 2**14)
    assert (found.points, found.n_up, found.n_down, found.n_tasks) == (pytest.approx(10.0), 12, 2, 100)


def test_adjusted_wald_of_bonett_and_price():
    approvals = difference([1.0] * 150 + [-1.0] * 86 + [0.0] * 1364)
    centre, variance = 64 / 1602, (151 + 87) / 1602 - (64 / 1602) ** 2
    half = 1.959964 * (variance / 1602) ** 0.5
    assert (approvals.low, approvals.high) == pytest.approx((100 * (centre - half), 100 * (centre + half)), abs=1e-4)


@given(up=st.integers(0, 60), down=st.integers(0, 60), same=st.integers(0, 60))
def test_sign_flip_test_of_single_samples_is_mcnemars(up: int, down: int, same: int):
    expected = binomtest(up, up + down).pvalue if up + down else 1.0
    assert sign_flip_test([1.0] * up + [-1.0] * down + [0.0] * same) == pytest.approx(expected, rel=1e-9)


@given(values=st.lists(st.sampled_from([-2, -1, -2 / 3, -0.5, 0, 0.25, 1 / 3, 1, 1.5, 2]), min_size=2, max_size=11))
def test_sign_flip_test_is_scipys_over_every_flip(values: list[float]):
    twelfths = [round(12 * v) for v in values]  # whole numbers, so that equal sums are equal for scipy too
    expected = permutation_test((twelfths,), lambda x, axis: x.sum(axis), permutation_type="samples", vectorized=True)
    assert sign_flip_test(values) == pytest.approx(expected.pvalue)


def test_sign_flip_test_of_many_tasks_is_the_normal_one():
    rng = random.Random(0)
    values = [rng.randint(0, 3) / 3 - rng.randint(0, 8) / 8 for _ in range(6000)]
    z = sum(values) / sum(v * v for v in values) ** 0.5
    assert sign_flip_test(values) == pytest.approx(math.erfc(abs(z) / 2**0.5), rel=0.02)


def test_sign_flip_test_counts_sizes_not_signs():
    found = difference([-1.0] * 60 + [2.0] * 30 + [0.0] * 110, bound=2.0)
    assert (found.points, found.p_value) == (0.0, 1.0)  # a sign test finds p = 0.002
    assert (found.n_up, found.n_down) == (30, 60)


def test_sign_flip_test_keeps_its_level_for_equal_versions():
    """Count rejections over 1,000 pairs of equal versions, for the gain over blind and for 3 samples a task."""
    rng = random.Random(0)

    def lift(skill: float) -> int:
        return 0 if rng.random() < skill else (rng.random() < skill) - (rng.random() < skill / 2)

    def three(skill: float) -> float:
        return sum(rng.random() < skill for _ in range(3)) / 3

    for sample in (lift, three):
        skills = [rng.betavariate(1, 2) for _ in range(60)]
        p_values = [sign_flip_test([sample(s) - sample(s) for s in skills]) for _ in range(1000)]
        assert 30 <= sum(p < 0.05 for p in p_values) <= 70


def test_rounding_errors_are_no_change():
    found = difference([1 / 3 - (1 - 2 / 3)] * 20)
    assert (found.p_value, found.n_up, found.n_down) == (1.0, 0, 0)


def test_no_task_changed():
    found = difference([0.0] * 50)
    assert (found.points, found.p_value, found.n_up, found.n_down) == (0.0, 1.0, 0, 0)
    assert found.low == pytest.approx(-found.high)
    assert 1 < found.high < 10


@given(values=changes)
def test_swapping_the_versions_flips_the_sign(values: list[float]):
    there, back = difference(values), difference([-v for v in values])
    assert (back.points, back.low, back.high) == pytest.approx((-there.points, -there.high, -there.low))
    assert (back.p_value, back.n_up, back.n_down) == (pytest.approx(there.p_value), there.n_down, there.n_up)


@given(values=changes, seed=st.integers())
def test_order_of_tasks_does_not_matter(values: list[float], seed: int):
    shuffled = random.Random(seed).sample(values, len(values))
    assert difference(shuffled).model_dump() == pytest.approx(difference(values).model_dump())


def test_intervals_cover_the_truth():
    """Count misses over 400 experiments of 80 tasks, 2 samples each; a 95 % interval should miss about 20 times."""
    rng = random.Random(0)
    missed_rate = missed_change = 0
    for _ in range(400):
        skills = [rng.betavariate(1, 2) for _ in range(80)]
        old = [(rng.random() < s) / 2 + (rng.random() < s) / 2 for s in skills]
        new = [(rng.random() < s**0.5) / 2 + (rng.random() < s**0.5) / 2 for s in skills]
        found, change = rate(old, 160), difference([b - a for a, b in zip(old, new, strict=True)])
        missed_rate += not found.low <= 1 / 3 <= found.high
        missed_change += not change.low <= 100 * (8 / 15 - 1 / 3) <= change.high
    assert 5 <= missed_rate <= 35
    assert 5 <= missed_change <= 35
