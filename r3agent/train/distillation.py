"""Rows that are not compared with siblings: retries that are distilled, and tries that are imitated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean

from r3agent.records.credit import follows_success, groups, reward
from r3agent.records.prompts import NOT_RUN
from r3agent.records.trajectory import Span, Trajectory
from r3agent.train.row import Dropped, Row, RowMaker


def rows_without_siblings(trajectories: Sequence[Trajectory], make_row: RowMaker) -> Iterator[list[Row] | Dropped]:
    """Make the rows of `distill` and `imitate`."""
    config = make_row.config
    if config.distill:
        yield from _distilled(trajectories, make_row)
    if config.imitate:
        yield from _imitated(trajectories, make_row)


def _distilled(trajectories: Iterable[Trajectory], make_row: RowMaker) -> Iterator[list[Row] | Dropped]:
    """Make a row from each retry after a reflection that passed although the first try had failed.

    The row joins the group of the task's first tries, whose prompt it shares; its advantage is its weight.
    Source: RLTF-SD, arXiv 2602.02482: (r_retry - mean r_first) · log π(retry | prompt of the first try), without an
    importance weight, because the retry was not sampled from that prompt. The mean is over the task's first tries.

    Both tries must be one completion each: the later steps of an agent's try follow the results of its own calls, which
    the other try did not see.
    """
    for group in groups(trajectories, "attempt"):
        mean = fmean(group.rewards_G)
        for trajectory, attempt in zip(group.trajectories_G, group.spans_G, strict=True):
            if trajectory.try_of(attempt).passed:
                continue
            for a_try in trajectory.tries:
                if a_try.label != "retry" or a_try.is_blind or not a_try.passed:
                    continue
                span = a_try.first
                if _has_own_results(trajectory, attempt, span):
                    yield Dropped(trajectory.trajectory_id, span.span_id, "distill", "several_steps")
                    continue
                earned = reward(trajectory, span) or 0.0
                yield make_row(
                    trajectory,
                    span,
                    label="distill",
                    group_id=group.group_id,
                    reward=earned,
                    advantage=(earned - mean) * make_row.config.distill,
                    prompt_of=attempt,
                )


def _imitated(trajectories: Iterable[Trajectory], make_row: RowMaker) -> Iterator[list[Row] | Dropped]:
    """Make the rows of each try that passed, after its own prompt: expert iteration, arXiv 1705.08439."""
    for trajectory in trajectories:
        for a_try in trajectory.tries:
            span = a_try.first
            if not a_try.passed or span.span_id in trajectory.recorded or follows_success(trajectory, span):
                continue
            yield make_row(
                trajectory,
                span,
                label="imitate",
                group_id=f"{trajectory.trajectory_id}/{span.span_id}/imitate",
                reward=1.0,
                advantage=make_row.config.imitate,
            )


def _has_own_results(trajectory: Trajectory, attempt: Span, retry: Span) -> bool:
    """Return True if one of two tries has several steps, or follows results of calls that the other did not make."""
    above = {span.span_id for span in trajectory.path(attempt)}
    between = [m for span in trajectory.path(retry) if span.span_id not in above for m in span.request]
    has_results = any(m.get("role") == "tool" and m.get("content") != NOT_RUN for m in between)
    return has_results or any(len(trajectory.try_of(span).steps) > 1 for span in (attempt, retry))
