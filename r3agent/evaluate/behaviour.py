"""Behaviour behind the success rates: what reflecting changes, how long reflections are, what they leak and cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import sqrt
from statistics import fmean, variance

from pydantic import Field

from r3agent.evaluate.cells import Cell, Means, by_task, error_of, first_try, outcome, reflected
from r3agent.evaluate.statistics import CONFIDENCE, Rate, rate
from r3agent.records.cost import Prices
from r3agent.records.leak import leaks
from r3agent.records.trajectory import Record, Span, Trajectory

PAID: tuple[Cell, ...] = ("first_try", "after_reflection", "blind_retry")
"""Cells whose tokens are compared."""


class Length(Record):
    """Mean length of reflections, in sampled tokens with those of the thinking: the mean of the tasks' means."""

    tokens: float
    n_tasks: int


class LengthChange(Record):
    """Change of the mean length of reflections, in tokens, with Welch's 95 % interval.

    It is not paired, because two versions reflect on different tasks.
    """

    tokens: float
    low: float
    high: float


class PerSuccess(Record):
    """Spending per success of one cell: that of all episodes, divided by their successes."""

    tokens: float
    """Sampled tokens."""
    cost: float | None = None
    """Cost of prompts and sampled tokens; `None` without prices."""
    currency: str = ""


class Behaviour(Record):
    """Behaviour of one version; a part is `None`, or missing, if no episode shows it."""

    wrong_to_right: Rate | None = None
    """Share of failed first tries that a retry after a reflection got right."""
    right_to_wrong: Rate | None = None
    """Share of passed first tries that a retry after a reflection got wrong. The loop retries only failed tries, so
    that only records of an application have any."""
    reflection_length: Length | None = None
    """`None` if the endpoint did not count the tokens."""
    leaks: Rate | None = None
    """Share of reflections that contain the answer of their own retry, as `records.leak` finds it."""
    per_success: dict[Cell, PerSuccess] = Field(default={})
    """A cell without a success, or without token counts, is missing."""


def behaviour(episodes: Sequence[Trajectory], prices: Prices | None = None) -> Behaviour | None:
    """Describe the episodes of one version that have no error; `None` without any."""
    whole = [t for t in episodes if error_of(t) is None]
    if not whole:
        return None
    lengths = reflection_lengths(whole)
    return Behaviour(
        wrong_to_right=_rate((t.task.id, reflected(t)) for t in whole if not first_try(t)),
        right_to_wrong=_rate((t.task.id, _lost(t)) for t in whole if first_try(t)),
        reflection_length=Length(tokens=fmean(lengths.values()), n_tasks=len(lengths)) if lengths else None,
        leaks=_rate(_leaks(whole)),
        per_success={cell: found for cell in PAID if (found := _per_success(whole, cell, prices)) is not None},
    )


def reflection_lengths(episodes: Iterable[Trajectory]) -> Means:
    """Return the mean number of sampled tokens of a task's reflections, by task id."""
    whole = (t for t in episodes if error_of(t) is None)
    spans = [(t.task.id, span.completion_tokens) for t in whole for span in _reflections(t)]
    return by_task((task, float(tokens)) for task, tokens in spans if tokens is not None)


def leak_means(episodes: Iterable[Trajectory]) -> Means:
    """Return the share of a task's reflections that leak, by task id."""
    return by_task(_leaks(t for t in episodes if error_of(t) is None))


def length_change(candidate: Means, baseline: Means) -> LengthChange | None:
    """Compare the lengths of two versions' reflections; `None` if one of them has fewer than two tasks with any."""
    after, before = [*candidate.values()], [*baseline.values()]
    if min(len(after), len(before)) < 2:
        return None
    from scipy.stats import t as students_t  # importing it takes most of a second

    moved = fmean(after) - fmean(before)
    parts = [variance(values) / len(values) for values in (after, before)]
    half = 0.0
    if sum(parts):
        freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(after) - 1) + parts[1] ** 2 / (len(before) - 1))
        half = float(students_t.ppf((1 + CONFIDENCE) / 2, freedom)) * sqrt(sum(parts))
    return LengthChange(tokens=moved, low=moved - half, high=moved + half)


def _leaks(episodes: Iterable[Trajectory]) -> list[tuple[str, float]]:
    return [(t.task.id, float(leaks(t, span))) for t in episodes for span in _reflections(t)]


def _reflections(trajectory: Trajectory) -> list[Span]:
    """List the reflections that the policy wrote."""
    spans = trajectory.sampled
    return [span for span in spans if span.label == "reflect" and span.purpose is None and not span.refused]


def _lost(trajectory: Trajectory) -> float | None:
    kept = reflected(trajectory)
    return None if kept is None else 1 - kept


def _rate(values: Iterable[tuple[str, float | None]]) -> Rate | None:
    known = [(task, value) for task, value in values if value is not None]
    return rate([*by_task(known).values()], len(known)) if known else None


def _per_success(episodes: Sequence[Trajectory], cell: Cell, prices: Prices | None) -> PerSuccess | None:
    successes = [outcome(t, cell) for t in episodes]
    tokens = [_mean([_tokens(path) for path in _paths(t, cell)]) for t in episodes]
    cost = [_mean([prices.cost(path) for path in _paths(t, cell)]) if prices else None for t in episodes]
    found, spent, paid = _sum(successes), _sum(tokens), _sum(cost)
    if not found or spent is None:
        return None
    if prices is None or paid is None:
        return PerSuccess(tokens=spent / found)
    return PerSuccess(tokens=spent / found, cost=paid / found, currency=prices.currency)


def _paths(trajectory: Trajectory, cell: Cell) -> list[tuple[Span, ...]]:
    """List the calls that a cell's success takes; several retries are alternatives."""
    attempt = trajectory.attempt
    assert attempt is not None  # an episode without a first try cannot be evaluated
    first = trajectory.try_of(attempt).steps
    if cell == "first_try" or trajectory.try_of(attempt).passed:
        return [first]
    if cell == "blind_retry":
        return [(*first, *retry.steps) for retry in trajectory.retries(attempt)]
    reflections = trajectory.children(attempt, "reflect")
    return [(*first, span, *retry.steps) for span in reflections for retry in trajectory.retries(span)]


def _tokens(path: Iterable[Span]) -> float | None:
    return _sum([span.completion_tokens for span in path])


def _mean(values: Sequence[float | None]) -> float | None:
    total = _sum(values)
    return None if total is None or not values else total / len(values)


def _sum(values: Sequence[float | None]) -> float | None:
    """Add numbers; `None` if one of them is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
