"""What one policy version does on a set of tasks: first try, after a reflection, after a blind retry, errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Literal, TypeAlias

from r3agent.errors import ConfigError
from r3agent.evaluate.statistics import Difference, Rate, difference, rate
from r3agent.trajectory import Record, Span, Task, Trajectory, mean_success

Cell: TypeAlias = Literal["first_try", "after_reflection", "blind_retry"]
CELLS: tuple[Cell, ...] = ("first_try", "after_reflection", "blind_retry")

Means: TypeAlias = Mapping[Cell, Mapping[str, float]]
"""Success rate of a task in a cell, by task id; a cell that was not collected is missing."""


class Evaluation(Record):
    """One policy version on a set of tasks."""

    policy: str
    """The served name, or several where the episodes come from several."""
    n_tasks: int
    n_episodes: int
    first_try: Rate | None
    """`None` here and below: no episode tells."""
    after_reflection: Rate | None
    """The first try, or else the retry after a reflection."""
    blind_retry: Rate | None
    """The control: the first try, or else the retry without a reflection."""
    lift_over_blind: Difference | None
    """after_reflection minus blind_retry on the same tasks: what reflecting is worth beyond trying again."""
    errors: Rate
    """Episodes that errored; they are in none of the cells."""
    errors_by_kind: dict[str, int]


def evaluate(trajectories: Iterable[Trajectory]) -> Evaluation:
    """The cells of one policy version, each with a 95 % interval.

    Raises:
        ConfigError: there are no episodes, or some were collected without the retries that others have.
    """
    trajectories = list(trajectories)
    if not trajectories:
        raise ConfigError("there are no episodes to evaluate; collect some first")
    whole = [t for t in trajectories if _error(t) is None]
    means = task_means(whole)
    samples = len(whole)
    rates = {cell: rate(list(by_task.values()), samples) for cell, by_task in means.items() if by_task}
    errors = by_task_means((t.task.id, float(_error(t) is not None)) for t in trajectories)
    return Evaluation(
        policy=", ".join(sorted({s.model for t in trajectories for s in t.spans})),
        n_tasks=len(errors),
        n_episodes=len(trajectories),
        first_try=rates.get("first_try"),
        after_reflection=rates.get("after_reflection"),
        blind_retry=rates.get("blind_retry"),
        lift_over_blind=difference(list(lift.values())) if (lift := lift_over_blind(means)) else None,
        errors=rate(list(errors.values()), len(trajectories)),
        errors_by_kind=dict(Counter(kind for t in trajectories if (kind := _error(t)) is not None)),
    )


def task_means(trajectories: Iterable[Trajectory]) -> Means:
    """Average each cell over the episodes of a task; errored episodes are left out.

    Raises:
        ConfigError: some failed attempts have a retry of a kind that others lack.
    """
    whole = [t for t in trajectories if _error(t) is None]
    return {cell: by_task_means((t.task.id, v) for t, v in zip(whole, values, strict=True)) for cell, values in _cells(whole)}


def tasks_of(trajectories: Iterable[Trajectory]) -> dict[str, Task]:
    return {t.task.id: t.task for t in trajectories}
