"""Shares of tries that passed, by task, with running sums: a display asks for their mean after every episode."""

from __future__ import annotations

from collections.abc import Iterator

from r3agent.records.record import Record

_PAIRS: dict[tuple[int, int], tuple[int, int]] = {}
"""Counts, which most tasks have in common."""


PLACES = 12
"""Decimal places of a rate: running sums depend on the order of the tries."""


class TaskRate(Record):
    """Mean over tasks of the share of their tries that passed."""

    rate: float
    variance: float
    """Variance of the share between tasks."""
    n_tasks: int
    passed: int
    """Tries that passed."""
    tries: int
    """Tries with a verdict."""


class TaskShares:
    """Mean over tasks of the share of their tries that passed, and how much the tasks vary."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, int]] = {}
        """Number of passed and of judged tries of each task."""
        self.judged = 0
        """Number of judged tries of all tasks."""
        self._sum = self._squares = 0.0

    def __len__(self) -> int:
        return len(self._counts)

    def __iter__(self) -> Iterator[tuple[str, int, int]]:
        return ((task, *counts) for task, counts in self._counts.items())

    def add(self, task: str, passed: int, judged: int) -> None:
        """Count judged tries of a task."""
        if not judged:
            return
        before = self._counts.get(task, (0, 0))
        now = before[0] + passed, before[1] + judged
        self._counts[task] = _PAIRS.setdefault(now, now)
        old, new = before[0] / (before[1] or 1), now[0] / now[1]
        self._sum += new - old
        self._squares += new**2 - old**2
        self.judged += judged

    @property
    def mean(self) -> float:
        """Mean over tasks; 0 without any."""
        return min(1.0, max(0.0, self._sum / (len(self) or 1)))

    @property
    def variance(self) -> float:
        """Variance between tasks."""
        return max(0.0, self._squares / (len(self) or 1) - self.mean**2)

    def rate(self) -> TaskRate:
        """Return the mean, and the numbers that its interval needs."""
        passed = sum(passed for passed, _ in self._counts.values())
        return TaskRate(
            rate=round(self.mean, PLACES),
            variance=round(self.variance, PLACES),
            n_tasks=len(self),
            passed=passed,
            tries=self.judged,
        )
