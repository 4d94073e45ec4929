"""Metrics of one policy version on a set of tasks: first try, after a reflection, after a blind retry, errors."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Literal, TypeAlias

from pydantic import Field

from r3agent.errors import ConfigError
from r3agent.evaluate.equal_tokens import EqualTokens, equal_tokens, success_of
from r3agent.evaluate.settings import check_same_settings
from r3agent.evaluate.statistics import Difference, Rate, difference, rate
from r3agent.records.trajectory import Record, Trajectory, each_trajectory, mean_success

Cell: TypeAlias = Literal["first_try", "after_reflection", "blind_retry", "blind_equal_tokens"]
CELLS: tuple[Cell, ...] = ("first_try", "after_reflection", "blind_retry", "blind_equal_tokens")

Means: TypeAlias = Mapping[str, float]
"""A task's success rate over its episodes, by task id."""


class Evaluation(Record):
    """Metrics of one policy version on a set of tasks. A cell is `None` if no episode has it."""

    policy: str
    """Policy version that sampled the episodes."""
    n_tasks: int
    n_episodes: int
    first_try: Rate | None
    after_reflection: Rate | None
    """Success rate of the first try, or else of the retry after a reflection."""
    blind_retry: Rate | None
    """Control: success rate of the first try, or else of the retry without a reflection."""
    lift_over_blind: Difference | None
    """Difference after_reflection - blind_retry on the same tasks: the gain of reflecting over one blind retry, which
    samples fewer tokens."""
    blind_equal_tokens: Rate | None = None
    """Control at equal tokens: success rate of the first try, or else of at least one of `equal_tokens.retries` blind
    retries. `None` if fewer are recorded, or without token counts."""
    lift_at_equal_tokens: Difference | None = None
    """Difference after_reflection - blind_equal_tokens on the same tasks."""
    equal_tokens: EqualTokens | None = None
    """Tokens of reflecting and of a blind retry; `None` if the endpoint did not count them."""
    errors: Rate
    """Share of episodes that errored; no cell includes them."""
    errors_by_kind: dict[str, int]
    unfinished: dict[str, int] = {}
    """Tries without a whole answer, by reason, e.g. `length` for the token limit; they are failures in the cells."""
    unfinished_reflections: dict[str, int] = {}
    """Reflections that were cut off or refused, by reason."""
    asked: tuple[int, int] | None = Field(default=None, exclude_if=lambda counts: counts is None)
    """Number of tries that asked the policy, and of all; `None` if all did. The others asked other models, or none."""
    noisy_verdicts: int = 0
    """Number of verdicts that may be wrong, such as an LLM judge's; the intervals above do not account for it."""


def evaluate(trajectories: Iterable[Trajectory], *, mixed: bool = False) -> Evaluation:
    """Evaluate one policy version.

    Args:
        mixed: accept episodes of different settings, e.g. prompts or temperatures.

    Raises:
        ConfigError: there are no episodes, some lack a kind of retry that others have, their settings differ, or none
            of their tries asked the policy.
    """
    trajectories = list(each_trajectory(trajectories))
    if not trajectories:
        raise ConfigError("there are no episodes to evaluate; collect some first")
    if not mixed:
        check_same_settings(trajectories)
    asked = _asked(trajectories)
    means = cell_means(trajectories)
    errors, spans = [error_of(t) for t in trajectories], [s for t in trajectories for s in t.spans]
    error_means = _by_task((t.task.id, float(e is not None)) for t, e in zip(trajectories, errors, strict=True))
    rates = {cell: rate(list(means[cell].values()), errors.count(None)) for cell in CELLS if means[cell]}
    return Evaluation(
        policy=", ".join(sorted({s.policy_version or s.model for s in spans if s.purpose is None})),
        n_tasks=len(error_means),
        n_episodes=len(trajectories),
        first_try=rates.get("first_try"),
        after_reflection=rates.get("after_reflection"),
        blind_retry=rates.get("blind_retry"),
        lift_over_blind=change(means["after_reflection"], means["blind_retry"]),
        blind_equal_tokens=rates.get("blind_equal_tokens"),
        lift_at_equal_tokens=change(means["after_reflection"], means["blind_equal_tokens"]),
        equal_tokens=equal_tokens(t for t in trajectories if error_of(t) is None),
        errors=rate(list(error_means.values()), len(trajectories)),
        errors_by_kind=dict(Counter(e for e in errors if e is not None)),
        asked=asked,
        unfinished=dict(Counter(a.unfinished for t in trajectories for a in t.tries if a.unfinished)),
        unfinished_reflections=dict(Counter(s.unfinished for s in spans if s.label == "reflect" and s.unfinished)),
        noisy_verdicts=sum(s.verdict is not None and s.verdict.noisy for s in spans),
    )


def cell_means(trajectories: Iterable[Trajectory]) -> dict[Cell, Means]:
    """Average each cell over the episodes of a task, without errored ones; empty for a cell that was not collected.

    Raises:
        ConfigError: some failed attempts lack a kind of retry that others have.
    """
    whole = [t for t in trajectories if error_of(t) is None]
    cost = equal_tokens(whole)
    means: dict[Cell, Means] = {}
    for cell in CELLS:
        if cell == "blind_equal_tokens" and (cost is None or not cost.enough):
            means[cell] = {}
            continue
        outcomes = [(t, outcome(t, cell, retries=cost.retries if cost else 1)) for t in whole]
        missing = [t.trajectory_id for t, value in outcomes if value is None]
        if missing and any(value is not None and not _first_try(t) for t, value in outcomes):
            raise ConfigError(
                f"{cell}: {len(missing)} of {len(whole)} episodes, such as {missing[0]}, have a failed attempt without "
                "the retry that others have: they were collected with other settings; evaluate them apart"
            )
        means[cell] = {} if missing else _by_task((t.task.id, value) for t, value in outcomes if value is not None)
    return means


def outcome(trajectory: Trajectory, cell: Cell, retries: float = 1) -> float | None:
    """Return the success of one complete episode in a cell, between 0 and 1; `None` if it has no such retry.

    Args:
        retries: number of blind retries that cost as many tokens as reflecting.
    """
    attempt = trajectory.attempt
    if attempt is None or trajectory.try_of(attempt).passed or cell == "first_try":
        return _first_try(trajectory)
    if cell == "blind_retry":
        return mean_success(trajectory.retries(attempt))
    if cell == "blind_equal_tokens":
        return success_of(trajectory.retries(attempt), retries)
    reflections = trajectory.children(attempt, "reflect")
    return mean_success(retry for reflection in reflections for retry in trajectory.retries(reflection))


def error_of(trajectory: Trajectory) -> str | None:
    """Return why an episode cannot be evaluated: an error of it or of a try, no verdict; `None` if it can."""
    errors = [trajectory.error, *(a_try.error for a_try in trajectory.tries)]
    if error := next(filter(None, errors), None):
        return error.kind
    return "no verdict" if _first_try(trajectory) is None else None


def paired_differences(candidate: Means, baseline: Means) -> Means:
    """Subtract the baseline from the candidate, for the tasks in both."""
    return {task: candidate[task] - baseline[task] for task in sorted(candidate.keys() & baseline.keys())}


def change(candidate: Means, baseline: Means, bound: float = 1.0) -> Difference | None:
    """Compute the mean difference over the tasks in both; `None` if there is none."""
    differences = list(paired_differences(candidate, baseline).values())
    return difference(differences, bound) if differences else None


def _asked(trajectories: Iterable[Trajectory]) -> tuple[int, int] | None:
    """Count the tries that asked the policy, and all; `None` if all did.

    Raises:
        ConfigError: none did, although some ended without an error.
    """
    tries = [a_try for t in trajectories for a_try in t.tries]
    asked = sum(a_try.asked_policy for a_try in tries)
    if not asked and any(a_try.error is None for a_try in tries):
        others = Counter(f"{s.purpose} ({s.model})" for a_try in tries for s in a_try.steps)
        found = ", ".join(f"{n} x {purpose}" for purpose, n in others.most_common(3))
        raise ConfigError(
            f"0 of {len(tries)} tries asked the policy; at least 1 must. Their calls are {found}. Let the agent ask "
            "for the model `policy`, or for the policy's name, with the client that it gets or an instrumented one; "
            "and give it another name, because episodes of this one are not run again"
        )
    return (asked, len(tries)) if asked < len(tries) else None


def _first_try(trajectory: Trajectory) -> float | None:
    return mean_success([trajectory.try_of(attempt)]) if (attempt := trajectory.attempt) else None


def _by_task(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    by_task: defaultdict[str, list[float]] = defaultdict(list)
    for task, value in values:
        by_task[task].append(value)
    return {task: fmean(by_task[task]) for task in sorted(by_task)}
