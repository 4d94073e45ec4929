"""Power of a paired comparison: how many tasks a lift needs, and which lift a number of tasks can show.

The comparison is McNemar's exact two-sided test of one pass or fail per task. Its power depends on the lift and on the
discordance, the share of tasks with another outcome under the two versions; a lift is at most the discordance, so that
a smaller one is raised to it. Averages over several samples of a task vary less: the mean square of their differences
takes the place of the discordance, which it is for one sample, and the power is approximate.
"""

from __future__ import annotations

from math import ceil, sqrt
from statistics import NormalDist
from typing import Annotated

from pydantic import Field

from r3agent._util.checked import AtLeastOne, Share, checked
from r3agent.evaluate.statistics import CONFIDENCE, Difference
from r3agent.records.trajectory import Record

POWER = 0.8
"""Probability of finding a lift that is there, for which tasks are planned."""

ASSUMED = 0.2
"""Discordance that is assumed where no comparison is stored."""

ENOUGH_TASKS = 30
"""Fewest tasks of a comparison whose discordance is not assumed; of fewer, a few outcomes decide what it is."""

MOST_TASKS = 10_000_000

Lift = Annotated[float, Field(gt=0, le=100)]


class PowerPlan(Record):
    """Lifts that a comparison can show, with a probability of 80 % and a two-sided test at 5 %."""

    n_tasks: int
    """Number of tasks of the comparison."""
    discordance: float
    """Share of tasks with another outcome under the two versions, or the mean square of their differences."""
    measured_on: str
    """Comparison that the discordance is from; empty if it is assumed."""
    lift: float
    """Lift to plan for, in percentage points."""
    tasks_needed: int
    """Number of tasks that this lift needs."""
    smallest_lift: float | None
    """Smallest lift that `n_tasks` can show, in percentage points; `None` if they can show none."""

    def __str__(self) -> str:
        assumed = f"assumed, no comparison of {ENOUGH_TASKS} tasks is stored"
        found = f"as in {self.measured_on}" if self.measured_on else assumed
        seen = "no lift" if self.smallest_lift is None else f"{self.smallest_lift:.1f} points"
        return (
            f"a lift of {self.lift:g} points after a reflection needs {self.tasks_needed} tasks for a power of "
            f"{POWER:.0%}, if {self.discordance:.0%} of the outcomes differ ({found}); {self.n_tasks} tasks show {seen}"
        )


def plan_power(n_tasks: int, *, lift: float, known: Difference | None = None, measured_on: str = "") -> PowerPlan:
    """Plan a comparison.

    Args:
        lift: lift to plan for, in percentage points.
        known: change in an earlier comparison, named by `measured_on`, that the discordance is taken from if it has
            at least 30 tasks.
    """
    if known is not None and known.n_tasks < ENOUGH_TASKS:
        known = None
    discordance = ASSUMED if known is None else discordance_of(known)
    return PowerPlan(
        n_tasks=n_tasks,
        discordance=discordance,
        measured_on="" if known is None else measured_on,
        lift=lift,
        tasks_needed=tasks_needed(lift, discordance),
        smallest_lift=smallest_lift(n_tasks, discordance),
    )


def discordance_of(change: Difference) -> float:
    """Return the mean square of the tasks' differences, at least that of one task that changed.

    For one sample per task it is the share of tasks with another outcome. It is computed from the interval, which
    `difference` made of differences within 1.
    """
    n = change.n_tasks
    centre = change.points / 100 * n / (n + 2)
    half = max(centre - change.low / 100, change.high / 100 - centre)  # one end may be cut off at 1
    variance = (half / NormalDist().inv_cdf((1 + CONFIDENCE) / 2)) ** 2 * (n + 2)
    squares = (n + 2) * (variance + centre**2) - 2  # without the two tasks that the interval adds
    return min(max(round(squares, 6), 1), max(change.n_up + change.n_down, 1)) / n


@checked
def power(n_tasks: AtLeastOne, lift: Lift, discordance: Share, *, alpha: Share = 1 - CONFIDENCE) -> float:
    """Compute the probability that McNemar's exact two-sided test finds a gain.

    Args:
        lift: gain, in percentage points.
        discordance: share of tasks with another outcome under the two versions.
    """
    import numpy as np
    from scipy.stats import binom  # importing it takes most of a second

    gain = lift / 100
    changed = max(discordance, gain)
    spread = 8 * sqrt(n_tasks * changed * (1 - changed)) + 8
    low, high = max(0, int(n_tasks * changed - spread)), min(n_tasks, ceil(n_tasks * changed + spread))
    changed_M = np.arange(low, high + 1)
    critical_M = binom.isf(alpha / 2, changed_M, 0.5)  # more gains than these are significant
    found_M = binom.sf(critical_M, changed_M, (1 + gain / changed) / 2)
    return float(binom.pmf(changed_M, n_tasks, changed) @ found_M)


@checked
def tasks_needed(lift: Lift, discordance: Share, *, wanted: Share = POWER, alpha: Share = 1 - CONFIDENCE) -> int:
    """Find the number of tasks that a lift, in percentage points, needs; at most 10 million."""
    few, many = 0, 8
    while many < MOST_TASKS and power(many, lift, discordance, alpha=alpha) < wanted:
        few, many = many, 2 * many
    while many - few > 1:
        middle = (few + many) // 2
        if power(middle, lift, discordance, alpha=alpha) < wanted:
            few = middle
        else:
            many = middle
    return min(many, MOST_TASKS)


@checked
def smallest_lift(
    n_tasks: AtLeastOne, discordance: Share, *, wanted: Share = POWER, alpha: Share = 1 - CONFIDENCE
) -> float | None:
    """Find the smallest lift, in percentage points, that `n_tasks` show; `None` if they can show none."""
    if power(n_tasks, 100.0, discordance, alpha=alpha) < wanted:
        return None
    small, large = 0.0, 100.0
    while large - small > 0.01:
        middle = (small + large) / 2
        if power(n_tasks, middle, discordance, alpha=alpha) < wanted:
            small = middle
        else:
            large = middle
    return large
