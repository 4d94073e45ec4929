"""Running mean and variance over tasks, against those of all tasks."""

from __future__ import annotations

from statistics import fmean, pvariance

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r3agent.records.task_shares import TaskShares

TRIES = st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), min_size=1, max_size=60)


@given(TRIES)
def test_task_shares_are_as_computed_from_all_tries(tries: list[tuple[str, bool]]) -> None:
    shares, merged = TaskShares(), TaskShares()
    for task, passed in tries:
        shares.add(task, passed, 1)
    for counts in shares:
        merged.add(*counts)
    means = [fmean(p for t, p in tries if t == task) for task in {task for task, _ in tries}]
    for found in (shares, merged):
        assert (len(found), found.judged) == (len(means), len(tries))
        assert (found.mean, found.variance) == (pytest.approx(fmean(means)), pytest.approx(pvariance(means), abs=1e-9))


def test_task_shares_of_nothing_are_none() -> None:
    shares = TaskShares()
    shares.add("a", 0, 0)
    assert (len(shares), shares.judged, shares.mean, shares.variance) == (0, 0, 0.0, 0.0)
