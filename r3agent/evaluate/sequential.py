"""Sequential test of a mean of paired differences: valid at any number of tasks, however often it is looked at.

A bettor begins with a wealth of 1 and stakes a part of it on each next difference, between -1 and 1. If the mean is not
above 0, whatever came before, the wealth grows on average with no stake, so that it ever reaches 1 / level with a
probability of at most `level` (Ville's inequality), however skewed the differences are. The stake follows the size of
the earlier differences and is the best one for a gain that is just found within the planned number of tasks. Source:
I. Waudby-Smith and A. Ramdas, Estimating means of bounded random variables by betting, 2023 (section 3, with the bets
of a fixed horizon).

`differences_N` has one number for each of N tasks in the order of their draw; several samples are averaged first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, exp, log, sqrt
from statistics import NormalDist, fmean
from typing import TYPE_CHECKING, Any

from r3agent.evaluate.power import POWER
from r3agent.evaluate.statistics import CONFIDENCE
from r3agent.records.trajectory import Record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

MAX_STAKE = 0.75
"""Largest part of the wealth that one task can lose."""
HORIZON = 2 / 3
"""Share of the planned tasks that the stakes are best for; the rest finds the gains that come late."""
PRIOR_SQUARE = 0.25
"""Mean square of the differences that the first stake expects; it has the weight of one task."""
OPTIMISM = 1.0
"""Standard errors above its estimate at which the gain is assumed before a test is given up."""
FUTILE = 0.03
"""Probability of reaching the goal below which a test is given up. Giving up costs power and no validity."""
STEP = 0.583
"""Correction of the goal of a Brownian motion that is looked at in steps, in its steps: Siegmund's, 1985."""


COURSE_POINTS = 40
"""Number of tests in the course of one, at most."""


class Evidence(Record):
    """State of a sequential test of a gain, in percentage points."""

    e_value: float
    """Largest wealth so far."""
    needed: float
    """Wealth that is the evidence for a gain, the inverse of the one-sided level."""
    low: float
    """Lower end of the confidence sequence, which holds at every number of tasks at once with 95 %."""
    high: float
    n_tasks: int
    planned: int
    """Largest number of tasks."""
    futile: bool
    """True if the goal is hardly reached with the rest of the tasks."""
    detectable: float
    """Gain that the planned tasks find with a probability of 80 %; 100 if they find none."""

    @property
    def found(self) -> bool:
        """True if the evidence for a gain is in."""
        return self.e_value >= self.needed


def examine(differences_N: Sequence[float], *, planned: int, level: float, min_gain: float = 0.0) -> Evidence:
    """Test for a mean above 0, and estimate if a goal can still be reached.

    Args:
        planned: largest number of tasks, which must be fixed before the first one.
        level: one-sided level.
        min_gain: smallest mean that is of use; the test is of a mean above 0 all the same.
    """
    n, square, side = len(differences_N), _mean_square(differences_N), (1 - CONFIDENCE) / 2
    largest = max(0.0, *log_wealth(differences_N, planned=planned, level=level).tolist()) if n else 0.0
    e_value = exp(min(largest, 300.0))
    low, high = _lower_bound(differences_N, planned, side), -_lower_bound([-d for d in differences_N], planned, side)
    chance = _chance(differences_N, planned, level, min_gain, found=e_value >= 1 / level)
    return Evidence(
        e_value=e_value,
        needed=1 / level,
        low=100 * min(low, high),
        high=100 * max(low, high),
        n_tasks=n,
        planned=planned,
        futile=n < planned and chance < FUTILE,
        detectable=100 * detectable(square, planned=planned, level=level),
    )


def course(
    differences_N: Sequence[float], *, planned: int, level: float, points: int = COURSE_POINTS
) -> list[Evidence]:
    """Test as `examine` does after each of some numbers of tasks, evenly spaced up to all of them.

    Args:
        points: largest number of tests.
    """
    n = len(differences_N)
    ends = sorted({ceil(n * (i + 1) / points) for i in range(points)}) if n else []
    return [examine(differences_N[:end], planned=planned, level=level) for end in ends]


def log_wealth(differences_N: Sequence[float] | Floats, *, planned: int, level: float, mean: float = 0.0) -> Floats:
    """Compute the logarithm of the wealth after each task, of a bettor against a mean of at most `mean`.

    Args:
        differences_N: may have further axes before the tasks.
    """
    import numpy as np

    d_N = np.asarray(differences_N, dtype=np.float64)
    before = np.arange(d_N.shape[-1])
    squares_N = (PRIOR_SQUARE + np.cumsum(d_N**2, axis=-1) - d_N**2) / (before + 1)  # of the earlier tasks
    stakes_N = np.minimum(_stake(squares_N, planned, level), MAX_STAKE / (1 + mean))
    return np.cumsum(np.log1p(stakes_N * (d_N - mean)), axis=-1)


def sequential_power(gain: float, square: float, *, planned: int, level: float) -> float:
    """Compute the probability that the test finds a gain within the planned tasks.

    Args:
        square: mean square of the differences: with one sample a task, the share of tasks whose outcomes differ.
    """
    return _reaches(log(1 / level), gain, square, planned, level, planned)


def detectable(square: float, *, planned: int, level: float) -> float:
    """Find the gain that the planned tasks find with a probability of 80 %; 1 if they find none."""
    return _bisect(lambda gain: sequential_power(gain, square, planned=planned, level=level) < POWER, 0.0, 1.0)


def _stake(square: Any, planned: int, level: float) -> Any:
    return (2 * log(1 / level) / (square * HORIZON * planned)) ** 0.5


def _mean_square(differences_N: Sequence[float]) -> float:
    return (PRIOR_SQUARE + sum(d * d for d in differences_N)) / (len(differences_N) + 1)


def _reaches(goal: float, gain: float, square: float, planned: int, level: float, n: int) -> float:
    """Compute the probability that the wealth's logarithm grows by `goal` within `n` tasks, as a Brownian motion."""
    square = max(square, gain**2)
    stake, variance = min(_stake(square, planned, level), MAX_STAKE), max(square - gain**2, PRIOR_SQUARE / planned)
    drift, spread = stake * gain - stake**2 * square / 2, stake * sqrt(variance)
    goal += STEP * spread
    normal = NormalDist(0.0, spread * sqrt(n))
    returns = normal.cdf(-drift * n - goal)
    return normal.cdf(drift * n - goal) + (exp(min(0.0, 2 * drift * goal / spread**2 + log(returns))) if returns else 0)


def _chance(differences_N: Sequence[float], planned: int, level: float, min_gain: float, *, found: bool) -> float:
    """Compute the chance of the evidence, and of a mean of `min_gain`, if the gain is a little above its estimate."""
    n, left = len(differences_N), planned - len(differences_N)
    if not n or left <= 0:
        return 1.0
    mean, square = fmean(differences_N), _mean_square(differences_N)
    gain = min(1.0, mean + OPTIMISM * sqrt(square / n))
    at_end = (n * mean + left * gain) / planned
    useful = NormalDist().cdf((at_end - min_gain) / (sqrt(square * left) / planned))
    if found:
        return useful
    goal = log(1 / level) - float(log_wealth(differences_N, planned=planned, level=level)[-1])
    return min(useful, _reaches(goal, gain, square, planned, level, left))


def _lower_bound(differences_N: Sequence[float], planned: int, level: float) -> float:
    """Find the smallest mean that no wealth so far contradicts at `level`; a larger mean is contradicted less."""

    def is_contradicted(mean: float) -> bool:
        wealth_N = log_wealth(differences_N, planned=planned, level=level, mean=mean)
        return bool(wealth_N.max(initial=0.0) >= log(1 / level))

    return _bisect(is_contradicted, -1.0, 1.0)


def _bisect(is_below: Callable[[float], bool], low: float, high: float) -> float:
    """Find where a condition that holds for small values ends, to 0.01 points."""
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return low
