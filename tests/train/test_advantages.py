"""Advantages relative to the mean of the siblings, and of the siblings whose rewards vary most."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from statistics import pvariance
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from r3agent.records.trajectory import Trajectory
from r3agent.train import TrainConfig, build_rows
from r3agent.train.advantages import STD_EPSILON, most_varied, sibling_advantages

Record = Callable[..., list[Trajectory]]


def config(**settings: Any) -> TrainConfig:
    return TrainConfig.model_validate(settings)


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=2, max_size=8), st.integers(2, 8))
def test_most_varied_siblings_have_the_largest_variance(rewards: list[float], limit: int) -> None:
    chosen = most_varied(rewards, limit)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(limit, len(rewards))
    largest = max(pvariance(some) for some in combinations(rewards, len(chosen)))
    assert pvariance([rewards[i] for i in chosen]) == pytest.approx(largest)


def test_most_varied_of_right_and_wrong_are_half_of_each() -> None:
    chosen = most_varied([0, 0, 0, 1, 0, 0, 1, 1, 0, 1], 4)
    assert [[0, 0, 0, 1, 0, 0, 1, 1, 0, 1][i] for i in chosen] == [0, 0, 1, 1]
    assert most_varied([1, 0, 1], None) == [0, 1, 2]


def test_advantages_are_those_among_the_chosen_siblings(record: Record) -> None:
    trajectories = record([[0, 0, 1, 0, 0, 0]])
    rows, report = build_rows(trajectories, config=config(max_siblings=2, scale_rewards="none"), version="v0000")
    assert [(row.reward, row.advantage) for row in rows] == [(1, 0.5), (0, -0.5)]
    assert (report.dropped, report.groups) == ({"not_chosen": 4}, 1)


@pytest.mark.parametrize("rewards", [[0, 0, 0, 1], [0, 1, 1, 1], [0.5, 0.25]])
def test_mean_scale_divides_by_the_siblings_mean(rewards: list[float]) -> None:
    mean = sum(rewards) / len(rewards)
    advantages = sibling_advantages(rewards, "attempt", config(scale_rewards="mean"))
    assert advantages == pytest.approx([(x - mean) / (mean + STD_EPSILON) for x in rewards])


def test_mean_scale_weighs_the_rare_success_more() -> None:
    rare, common = (
        sibling_advantages(r, "attempt", config(scale_rewards="mean")) for r in ([0, 0, 0, 1], [0, 1, 1, 1])
    )
    assert rare[-1] > common[-1] > 0
    assert rare[0] == pytest.approx(-1, abs=1e-3)  # each failure, whatever the mean is
    assert common[0] == pytest.approx(-1, abs=1e-3)


def test_mean_scale_reaches_the_rows(record: Record) -> None:
    rows, _ = build_rows(record([[0, 0, 0, 1]]), config=config(scale_rewards="mean"), version="v0000")
    assert [row.advantage for row in rows] == pytest.approx([-1, -1, -1, 3], abs=0.01)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_siblings": 1}, "greater than or equal to 2"),
        ({"max_siblings": 4, "baseline": "batch"}, "max_siblings = 4 are compared alone; set baseline = 'siblings'"),
        ({"scale_rewards": "mean", "baseline": "batch"}, "'mean' is of siblings; set baseline = 'siblings'"),
        ({"scale_rewards": "mean", "credit": {"reflect": "lift"}}, "rewards that are not negative; reflect = 'lift'"),
        ({"scale_rewards": "median"}, "'group', 'batch', 'mean' or 'none'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        config(**settings)
