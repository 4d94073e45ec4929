"""Rates and paired differences over tasks, with 95 % intervals and a permutation test of the mean.

The unit of observation is the task. Several samples of one task are not independent, so they are averaged first.
`values` has one number for each of N tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist, fmean, pvariance

from r3agent._util.checked import Share, checked
from r3agent.errors import ArgumentError
from r3agent.records.trajectory import Record

CONFIDENCE = 0.95

EQUAL = 1e-9
"""Size up to which a difference is the rounding error of equal means, such as 1 - 2/3 and 1/3."""
RESOLUTION = 840
"""Steps per unit that differences are rounded to for the test; those of up to 8 samples are whole numbers of steps."""
MAX_STEPS = 10**9
"""Number of additions for an exact null distribution; above it the normal approximation is used."""


class Rate(Record):
    """Share of successes with its interval, all between 0 and 1."""

    rate: float
    low: float
    high: float
    n_tasks: int


class Difference(Record):
    """Paired change over the same tasks, in percentage points."""

    points: float
    low: float
    high: float
    p_value: float
    """Two-sided p-value of the mean in `sign_flip_test`; where one pass or fail per task is compared, McNemar's."""
    n_tasks: int
    n_up: int
    """Number of tasks that improved."""
    n_down: int


def wilson(k: float, n: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Compute Wilson's score interval for `k` successes of `n`.

    Both may be fractional, as effective counts are; `scipy.stats.binomtest` takes only whole counts.
    """
    if not 0 <= k <= n or not n or not 0 < confidence < 1:
        raise ArgumentError(f"wilson({k}, {n}, {confidence}): needs 0 <= k <= n, n above 0, 0 < confidence < 1")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def rate(values_N: Sequence[float], n_samples: int) -> Rate:
    """Compute the mean of N tasks' success rates, from `n_samples` samples in all.

    The interval is Wilson's at the effective sample size: the number of independent samples whose mean would vary as
    much as the tasks' mean, between N and `n_samples`. With one sample per task it is plain Wilson.
    Source: N. Dean and M. Pagano, Evaluating confidence interval methods for binomial proportions in clustered
    surveys, 2015.
    """
    p = fmean(values_N)
    return clustered(p, pvariance(values_N, p), len(values_N), n_samples)


def clustered(p: float, between: float, n: int, n_samples: int) -> Rate:
    """Compute `rate` from the mean and the variance of the success rates of `n` tasks."""
    effective = min(n * p * (1 - p) / between, n_samples) if between > 0 else n
    low, high = wilson(p * effective, effective)
    return Rate(rate=p, low=low, high=high, n_tasks=n)


def difference(differences_N: Sequence[float], bound: float = 1.0) -> Difference:
    """Compute the mean of N tasks' differences, each within ±`bound`.

    The interval is Wald's after adding one task at +bound and one at -bound, which keeps its coverage where few tasks
    changed. Source: D. Bonett and R. Price, Adjusted Wald confidence interval for a difference of binomial
    proportions based on paired data, 2012.
    """
    n = len(differences_N)
    n_up = sum(d > EQUAL for d in differences_N)
    n_down = sum(d < -EQUAL for d in differences_N)
    adjusted = [*differences_N, bound, -bound]
    centre = fmean(adjusted)
    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * sqrt(pvariance(adjusted, centre) / (n + 2))
    return Difference(
        points=100 * fmean(differences_N),
        low=100 * max(-bound, centre - half),
        high=100 * min(bound, centre + half),
        p_value=sign_flip_test(differences_N),
        n_tasks=n,
        n_up=n_up,
        n_down=n_down,
    )


def sign_flip_test(differences_N: Sequence[float]) -> float:
    """Compute the two-sided p-value of the mean of N tasks' differences in the permutation test that flips signs.

    The null hypothesis is that swapping the two sides of a task changes nothing, so that each difference is as likely
    as its negative, independently of other tasks. Then the test is exact for any size of the differences. If only the
    mean is zero, and large differences of one sign balance small ones of the other, it holds approximately, for many
    tasks. For differences in {-1, 0, 1} it is the sign test, which for one pass or fail per task is McNemar's test.

    The null distribution is computed whole by convolution. A set of differences that would take more than `MAX_STEPS`,
    such as those of 5,000 tasks with unequal numbers of samples, gets the normal approximation.
    """
    import numpy as np
    from scipy.stats import binom  # importing it takes most of a second

    exact_N = np.asarray(differences_N)
    steps_N = np.rint(exact_N * RESOLUTION).astype(np.int64)
    if not steps_N.any():
        return 1.0
    steps_N //= np.gcd.reduce(steps_N)
    sizes, counts = np.unique(np.abs(steps_N[steps_N != 0]), return_counts=True)
    total, observed = int(sizes @ counts), abs(int(steps_N.sum()))
    if total * len(steps_N) > MAX_STEPS:
        return 2 * NormalDist().cdf(-abs(exact_N.sum()) / sqrt(exact_N @ exact_N))
    null = np.ones(1)  # of the sum of the positive differences, from 0 to the total
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        longer = np.zeros(len(null) + size * count)
        for heads, probability in enumerate(binom.pmf(range(count + 1), count, 0.5)):
            longer[heads * size : heads * size + len(null)] += probability * null
        null = longer
    return min(1.0, 2 * float(null[(total + observed) // 2 :].sum()))


@checked
def spend_alpha(alpha: Share, promoted: Sequence[bool]) -> float:
    """Return the level of the next comparison of a loop that promotes an equal version with probability <= `alpha`.

    The k-th comparison gets 2 alpha / (k (k + 1)), at most alpha. These shares add up to 2 alpha, however long the loop
    is and however often it is extended, and an equal version is promoted with half of a comparison's level, because the
    test is two-sided and only a gain promotes. A comparison that promotes hands its level on to the next one, so that
    versions that gain do not use it up. Source: J. Tian and A. Ramdas, Online control of the familywise error rate,
    2021 (online fallback). It needs comparisons whose episodes were drawn for them alone.

    Args:
        promoted: decisions of the earlier comparisons, oldest first.
    """
    level = carried = 0.0
    for k, promotes in enumerate([*promoted, False], start=1):
        level = min(alpha, 2 * alpha / (k * (k + 1)) + carried)
        carried = level if promotes else 0.0
    return level
