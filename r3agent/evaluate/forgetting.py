"""Check of forgetting: first tries on tasks of other sources, which must not drop by more than their budget."""

from __future__ import annotations

from collections.abc import Iterable

from r3agent._util.checked import NotNegative, checked
from r3agent.evaluate.cells import cell_means, change, error_of
from r3agent.evaluate.statistics import Difference, Rate, rate
from r3agent.records.trajectory import Record, Trajectory, each_trajectory


class Forgetting(Record):
    """First tries of two versions on the same tasks of another source."""

    source: str
    """Name of the source in the settings."""
    budget: float
    """Largest drop that is accepted, in percentage points."""
    before: Rate | None
    after: Rate | None
    change: Difference | None
    """Candidate minus baseline; `None` if no task was judged under both."""

    @property
    def within(self) -> bool:
        """True if the change is known, and no larger a drop than the budget."""
        return self.change is not None and self.change.points >= -self.budget

    @property
    def condition(self) -> str:
        """Condition of a promotion, as text."""
        if self.change is None:
            return f"first try on {self.source} not known, at least {-self.budget:+g}"
        return f"first try on {self.source} {self.change.points:+.1f} points, at least {-self.budget:+g}"


@checked
def forgetting(
    source: str, baseline: Iterable[Trajectory], candidate: Iterable[Trajectory], *, budget: NotNegative
) -> Forgetting:
    """Compare the first tries of two versions on the same tasks of another source.

    Args:
        source: its name, for people.
        budget: largest drop that is accepted, in percentage points.
    """
    versions = [[t for t in each_trajectory(given) if error_of(t) is None] for given in (baseline, candidate)]
    before, after = (cell_means(version)["first_try"] for version in versions)
    rates = [
        rate([*means.values()], len(version)) if means else None
        for means, version in zip((before, after), versions, strict=True)
    ]
    return Forgetting(source=source, budget=budget, before=rates[0], after=rates[1], change=change(after, before))
