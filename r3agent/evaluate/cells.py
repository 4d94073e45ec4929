"""Cells of an evaluation: the success rate of each task in the first try, after a reflection, and under each control.

A control branch is an episode that `records.branching.control_of` began: it takes the place of a reflection's retry in
the cell of its control, and counts in no other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Literal, TypeAlias, get_args

from r3agent.errors import ConfigError
from r3agent.evaluate.equal_tokens import equal_tokens, success_of
from r3agent.evaluate.statistics import Difference, difference
from r3agent.records.trajectory import Trajectory, mean_success

Cell: TypeAlias = Literal[
    "first_try", "after_reflection", "blind_retry", "blind_equal_tokens", "generic_reflection", "donor_reflection"
]
CELLS: tuple[Cell, ...] = get_args(Cell)
CONTROL_CELLS: Mapping[Cell, str] = {"generic_reflection": "generic", "donor_reflection": "donor"}
"""Cells of control branches, with the name of the control."""

Means: TypeAlias = Mapping[str, float]
"""A task's success rate over its episodes, by task id."""

Controls: TypeAlias = Mapping[tuple[str, str], Trajectory]
"""Control branches, by their control and the id of the episode that they branched off."""


def apart(trajectories: Iterable[Trajectory]) -> tuple[list[Trajectory], Controls]:
    """Separate episodes from their control branches."""
    episodes, controls = list[Trajectory](), dict[tuple[str, str], Trajectory]()
    for trajectory in trajectories:
        if trajectory.control is None:
            episodes.append(trajectory)
        else:
            controls[trajectory.control, str(trajectory.parent_id)] = trajectory
    return episodes, controls


def cell_means(trajectories: Iterable[Trajectory]) -> dict[Cell, Means]:
    """Average each cell over the episodes of a task, without errored ones; empty for a cell that was not collected.

    Raises:
        ConfigError: some failed attempts lack a kind of retry that others have.
    """
    episodes, controls = apart(trajectories)
    whole = [t for t in episodes if error_of(t) is None]
    cost = equal_tokens(whole)
    means: dict[Cell, Means] = {}
    for cell in CELLS:
        control = CONTROL_CELLS.get(cell)
        if (cell == "blind_equal_tokens" and (cost is None or not cost.enough)) or (
            control is not None and control not in {name for name, _ in controls}
        ):
            means[cell] = {}
            continue
        branches = {t.trajectory_id: controls.get((control or "", t.trajectory_id)) for t in whole}
        counted = [t for t in whole if (branch := branches[t.trajectory_id]) is None or error_of(branch) is None]
        outcomes = [(t, outcome(t, cell, cost.retries if cost else 1, branches[t.trajectory_id])) for t in counted]
        missing = [t.trajectory_id for t, value in outcomes if value is None]
        if missing and any(value is not None and not first_try(t) for t, value in outcomes):
            raise ConfigError(
                f"{cell}: {len(missing)} of {len(whole)} episodes, such as {missing[0]}, have a failed attempt without "
                "the retry that others have: they were collected with other settings; evaluate them apart"
            )
        means[cell] = {} if missing else by_task((t.task.id, value) for t, value in outcomes if value is not None)
    return means


def outcome(trajectory: Trajectory, cell: Cell, retries: float = 1, branch: Trajectory | None = None) -> float | None:
    """Return the success of one complete episode in a cell, between 0 and 1; `None` if it has no such retry.

    Args:
        retries: number of blind retries that cost as many tokens as reflecting.
        branch: control branch of the episode, for the cell of a control.
    """
    attempt = trajectory.attempt
    if attempt is None or trajectory.try_of(attempt).passed or cell == "first_try":
        return first_try(trajectory)
    if cell == "blind_retry":
        return mean_success(trajectory.retries(attempt))
    if cell == "blind_equal_tokens":
        return success_of(trajectory.retries(attempt), retries)
    if cell in CONTROL_CELLS:
        tries = () if branch is None else branch.tries
        return mean_success(a_try for a_try in tries if branch and a_try.first.span_id not in branch.recorded)
    return reflected(trajectory)


def reflected(trajectory: Trajectory) -> float | None:
    """Return the success of the retries after reflections on the first try; `None` without a verdict on any."""
    reflections = [] if (attempt := trajectory.attempt) is None else trajectory.children(attempt, "reflect")
    return mean_success(retry for reflection in reflections for retry in trajectory.retries(reflection))


def error_of(trajectory: Trajectory) -> str | None:
    """Return why an episode cannot be evaluated: an error of it or of a try, no verdict; `None` if it can."""
    errors = [trajectory.error, *(a_try.error for a_try in trajectory.tries)]
    if error := next(filter(None, errors), None):
        return error.kind
    return "no verdict" if first_try(trajectory) is None else None


def paired_differences(candidate: Means, baseline: Means) -> Means:
    """Subtract the baseline from the candidate, for the tasks in both."""
    return {task: candidate[task] - baseline[task] for task in sorted(candidate.keys() & baseline.keys())}


def change(candidate: Means, baseline: Means, bound: float = 1.0) -> Difference | None:
    """Compute the mean difference over the tasks in both; `None` if there is none."""
    differences = list(paired_differences(candidate, baseline).values())
    return difference(differences, bound) if differences else None


def first_try(trajectory: Trajectory) -> float | None:
    return mean_success([trajectory.try_of(attempt)]) if (attempt := trajectory.attempt) else None


def by_task(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Average the values of each task."""
    by_task: defaultdict[str, list[float]] = defaultdict(list)
    for task, value in values:
        by_task[task].append(value)
    return {task: fmean(by_task[task]) for task in sorted(by_task)}
