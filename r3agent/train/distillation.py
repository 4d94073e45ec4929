"""Rows that are not compared with siblings: distilled retries and imitated tries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from r3agent.records.branching import origins
from r3agent.records.credit import Group, follows_success, groups
from r3agent.records.prompts import NOT_RUN
from r3agent.records.trajectory import Span, Trajectory, Try
from r3agent.train.row import Dropped, Row, RowMaker


def rows_without_siblings(trajectories: Sequence[Trajectory], make_row: RowMaker) -> Iterator[list[Row] | Dropped]:
    """Make the rows of `distill` and `imitate`."""
    config = make_row.config
    if config.distill:
        yield from _distilled(trajectories, make_row)
    if config.imitate:
        yield from _imitated(trajectories, make_row)


def _distilled(trajectories: Sequence[Trajectory], make_row: RowMaker) -> Iterator[list[Row] | Dropped]:
    """Make a row from each retry that passed after a reflection on a failed first try.

    The row joins the group of the task's first tries, whose prompt it shares; its advantage is its weight.
    Source: RLTF-SD, arXiv 2602.02482: (r_retry - mean r_first) · log π(retry | prompt of the first try), without an
    importance weight, because the retry was not sampled from that prompt. The mean is over the task's first tries.

    Both tries must be one completion each: the later steps of an agent's try follow the results of its own calls, which
    the other try did not see.
    """
    for trajectory, span, attempt, group in _passed_retries(trajectories):
        if _has_own_results(trajectory, attempt, span):
            yield Dropped(trajectory.trajectory_id, span.span_id, "distill", "several_steps")
            continue
        yield make_row(
            trajectory,
            span,
            label="distill",
            group_id=group.group_id,
            reward=1.0,
            advantage=(1.0 - fmean(group.rewards_G)) * make_row.config.distill,
            prompt_of=attempt,
        )


def _imitated(trajectories: Sequence[Trajectory], make_row: RowMaker) -> Iterator[list[Row] | Dropped]:
    """Make the rows of each try that passed, after its own prompt: expert iteration, arXiv 1705.08439.

    A try that branches share is imitated once, by the verdict of the last of them, as in `groups`.
    """
    origin = origins(trajectories)
    judged: dict[tuple[str, str], tuple[Trajectory, Try]] = {}
    for trajectory in trajectories:
        for a_try in trajectory.tries:
            span = a_try.first
            if a_try.verdict and span.span_id not in trajectory.recorded and not follows_success(trajectory, span):
                judged[origin[trajectory.trajectory_id], span.span_id] = trajectory, a_try
    for trajectory, a_try in judged.values():
        if a_try.passed:
            span = a_try.first
            yield make_row(
                trajectory,
                span,
                label="imitate",
                group_id=f"{trajectory.trajectory_id}/{span.span_id}/imitate",
                reward=1.0,
                advantage=make_row.config.imitate,
            )


def _passed_retries(trajectories: Sequence[Trajectory]) -> Iterator[tuple[Trajectory, Span, Span, Group]]:
    """Yield each retry that passed, after its trajectory, and before the first try that failed and the group of that.

    Of retries and first tries that branches share, it is the copy in the last of them, whose verdict counts.
    """
    origin = origins(trajectories)
    of_origin: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        of_origin.setdefault(origin[trajectory.trajectory_id], []).append(trajectory)
    for group in groups(trajectories, "attempt"):
        for trajectory, attempt in zip(group.trajectories_G, group.spans_G, strict=True):
            if trajectory.try_of(attempt).passed:
                continue
            retries: dict[str, tuple[Trajectory, Try]] = {}
            for other in of_origin[origin[trajectory.trajectory_id]]:
                if _has_try(other, trajectory, attempt):
                    retries |= {a_try.first.span_id: (other, a_try) for a_try in _retries(other)}
            for other, a_try in retries.values():
                if a_try.passed:
                    yield other, a_try.first, attempt, group


def _has_try(branch: Trajectory, trajectory: Trajectory, attempt: Span) -> bool:
    """Return True if a branch has the first try of a trajectory, and neither it nor the task was edited there."""
    same = (span for span in branch.spans if span.span_id == attempt.span_id)
    unjudged = attempt.model_copy(update={"verdict": None})
    return branch.task.digest == trajectory.task.digest and any(
        span.model_copy(update={"verdict": None}) == unjudged for span in same
    )


def _retries(trajectory: Trajectory) -> Iterator[Try]:
    """Yield the retries after a reflection that have a verdict, follow no success, and began no branch."""
    judged = (t for t in trajectory.tries if t.label == "retry" and not t.is_blind and t.verdict is not None)
    own = (t for t in judged if t.first.span_id not in trajectory.recorded)
    return (t for t in own if not follows_success(trajectory, t.first))


def _has_own_results(trajectory: Trajectory, attempt: Span, retry: Span) -> bool:
    """Return True if one of two tries has several steps, or follows results of calls that the other did not make."""
    above = {span.span_id for span in trajectory.path(attempt)}
    between = [m for span in trajectory.path(retry) if span.span_id not in above for m in span.request]
    has_results = any(m.get("role") == "tool" and m.get("content") != NOT_RUN for m in between)
    return has_results or any(len(trajectory.try_of(span).steps) > 1 for span in (attempt, retry))
