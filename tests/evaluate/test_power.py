from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r3agent.errors import ArgumentError
from r3agent.evaluate import compare, evaluate, finding, plan_power, power, smallest_lift, tasks_needed
from r3agent.evaluate.power import discordance_of
from r3agent.evaluate.statistics import difference, sign_flip_test
from tests.evaluate.episodes import episode


def test_power_is_that_of_the_test_over_all_outcomes():
    """Each of seven tasks gains with a probability of 0.5, loses with 0.1, and stays with 0.4."""
    chances = {1: 0.5, -1: 0.1, 0: 0.4}
    found = 0.0
    for outcomes in product(chances, repeat=7):
        if sum(outcomes) > 0 and sign_flip_test(outcomes) < 0.05:
            chance = 1.0
            for outcome in outcomes:
                chance *= chances[outcome]
            found += chance
    assert power(7, 40, 0.6) == pytest.approx(found)
    assert power(5, 100, 0.5) == 0  # five gains of five have p = 0.0625
    assert power(6, 100, 0.5) == pytest.approx(1)


def test_tasks_needed_are_the_fewest_and_above_the_normal_ones():
    needed = tasks_needed(10, 0.2)
    assert power(needed, 10, 0.2) >= 0.8 > power(needed - 1, 10, 0.2)
    assert 155 < needed < 180  # (1.96 sqrt(0.2) + 0.84 sqrt(0.2 - 0.01))^2 / 0.01 = 155
    assert tasks_needed(5, 0.2) > 3.5 * needed
    with pytest.raises(ArgumentError, match="lift = 0"):
        tasks_needed(0, 0.2)


def test_smallest_lift_is_what_the_tasks_show():
    seen = smallest_lift(needed := tasks_needed(10, 0.2), 0.2)
    assert seen == pytest.approx(10, abs=0.1)
    assert smallest_lift(4 * needed, 0.2) == pytest.approx(5, abs=0.3)
    assert smallest_lift(5, 0.2) is None


def test_plan_power_takes_the_discordance_of_a_comparison():
    known = difference([1.0] * 6 + [-1.0] * 4 + [0.0] * 90)
    plan = plan_power(500, lift=5, known=known, measured_on="v0000-v0001")
    assert (plan.discordance, plan.tasks_needed) == (0.1, tasks_needed(5, 0.1))
    assert f"needs {plan.tasks_needed} tasks for a power of 80%, if 10% of the outcomes differ (as in v0000" in str(
        plan
    )
    assumed = str(plan_power(3, lift=5))
    few = difference([1.0] * 6 + [0.0] * 3)
    assert plan_power(3, lift=5, known=few, measured_on="v0000-v0001") == plan_power(3, lift=5)
    assert "20% of the outcomes differ (assumed, no comparison of 30 tasks is stored); 3 tasks show no lift" in assumed


@given(values=st.lists(st.sampled_from([-1.0, -0.5, -0.25, 0.0, 0.0, 0.25, 1 / 3, 0.75, 1.0]), min_size=1, max_size=50))
def test_discordance_is_the_mean_square_of_the_differences(values: list[float]):
    """One sample per task makes it the share of tasks that changed."""
    assert discordance_of(difference(values)) == pytest.approx(
        max(sum(v * v for v in values), 1) / len(values), abs=1e-4
    )


def test_finding_is_one_sentence_with_what_could_have_been_seen():
    old = [episode(f"{i}", i < 10) for i in range(40)]
    better = [episode(f"{i}", i < 10, i < 25, version="v0001") for i in range(40)]
    assert finding(compare(old, better)) == (
        "v0001 is better than v0000 after a reflection: +37.5 points [+19.8, +51.6] on 40 tasks (p = 6.1e-05)."
    )
    assert finding(compare(better, old)).startswith("v0000 is worse than v0001 after a reflection: -37.5 points")
    same = finding(compare(old, [episode(f"{i}", i < 10, version="v0001") for i in range(40)]))
    seen = smallest_lift(40, 1 / 40)
    assert same == (
        "v0001 is not shown to be better or worse than v0000 after a reflection: +0.0 points [-6.6, +6.6] on 40 tasks "
        f"(p = 1), which would show a gain of {seen:.1f} points with a probability of 80%."
    )
    assert finding(evaluate(better)).startswith(
        "v0001 solves 62.5 % of 40 tasks after a reflection; reflecting is better than a blind retry: +37.5 points"
    )
    few = [episode(f"{i}", True, i < 6) for i in range(9)]
    assert "on 9 tasks (p = 1), which are too few to show any gain that is possible" in finding(compare(few, few))
    errors = [episode("1", False, error="PolicyError")]
    assert "has no episode" in finding(evaluate(errors))
    assert "cannot be compared" in finding(compare(errors, errors))
