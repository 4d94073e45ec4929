"""Rows that are not compared with siblings: distilled retries, imitated tries, and first tries with a hint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import sqrt
from statistics import fmean
from typing import NamedTuple, TypeAlias

from r3agent.records.branching import origins
from r3agent.records.credit import follows_success, groups
from r3agent.records.media import media_in
from r3agent.records.prompts import NOT_RUN
from r3agent.records.trajectory import Span, Trajectory, Try
from r3agent.train.row import Dropped, Row, RowMaker

Retry: TypeAlias = tuple[Trajectory, Try]
"""Retry, and the trajectory that it is in."""


class FailedTry(NamedTuple):
    """First try that failed; of those that branches share, the copy in the last of them, whose verdict counts."""

    trajectory: Trajectory
    span: Span
    group_id: str
    mean: float
    """Mean success of the task's first tries."""
    retries: list[Retry]
    """Retries after reflections on it, of its trajectory and all branches."""


def rows_without_siblings(trajectories: Sequence[Trajectory], make_row: RowMaker) -> Iterator[list[Row] | Dropped]:
    """Make the rows of `distill`, `imitate` and `self_distill`."""
    config = make_row.config
    if config.distill:
        yield from _distilled(trajectories, make_row)
    if config.imitate:
        yield from _imitated(trajectories, make_row)
    if config.self_distill:
        yield from _self_distilled(trajectories, make_row)


def _distilled(trajectories: Sequence[Trajectory], make_row: RowMaker) -> Iterator[list[Row] | Dropped]:
    """Make a row from each retry, after a reflection on a failed first try, that passed; or from all, as configured.

    The row joins the group of the task's first tries, whose prompt it shares; its advantage is its weight.
    Source: RLTF-SD, arXiv 2602.02482: (r_retry - mean r_first) · log π(retry | prompt of the first try), without an
    importance weight, because the retry was not sampled from that prompt. The mean is over the task's first tries.

    Both tries must be one completion each: the later steps of an agent's try follow the results of its own calls, which
    the other try did not see.
    """
    config = make_row.config
    for _, attempt, group_id, mean, retries in _failed_first_tries(trajectories):
        for trajectory, a_try in retries:
            span, earned = a_try.first, float(a_try.passed is True)
            if earned == mean or (config.distill_retries == "passed" and not earned):
                continue
            if _has_own_results(trajectory, attempt, span):
                yield Dropped(trajectory.trajectory_id, span.span_id, "distill", "several_steps")
                continue
            yield make_row(
                trajectory,
                span,
                label="distill",
                group_id=group_id,
                reward=earned,
                advantage=(earned - mean) * config.distill,
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


def _self_distilled(trajectories: Sequence[Trajectory], make_row: RowMaker) -> Iterator[list[Row] | Dropped]:
    """Make a row from each failed first try after which a retry passed; the prompt of that retry is its hint.

    The advantage is the weight, to be multiplied with that of each token (`hints`). SDPO's hint is a right answer or
    feedback without the first try itself; this one has both the first try and the reflection, as they were recorded.
    With `weighted`, the share of retries that passed stands for SC-SDPO's pass rate of the task, whose first try may be
    its only one.
    """
    config, form = make_row.config, make_row.config.self_distill_form
    for trajectory, attempt, group_id, _, retries in _failed_first_tries(trajectories):
        passed, failed = ([retry for retry in retries if retry[1].passed is wanted] for wanted in (True, False))
        if not passed or (not failed and form != "hint"):
            continue
        p = len(passed) / len(retries)
        prompts = _hints(attempt, [passed[0], *failed[:1]] if form == "contrast" else passed[:1], make_row)
        if isinstance(prompts, str):
            yield Dropped(trajectory.trajectory_id, attempt.span_id, "self_distill", prompts)
            continue
        made = make_row(
            trajectory,
            attempt,
            label="self_distill",
            group_id=group_id,
            reward=0.0,
            advantage=config.self_distill * (sqrt(p * (1 - p)) if form == "weighted" else 1.0),
        )
        if isinstance(made, Dropped):
            yield made
            continue
        [row] = made
        if max(map(len, prompts)) + len(row.completion_ids_T) > config.max_row_tokens:
            yield Dropped(trajectory.trajectory_id, attempt.span_id, "self_distill", "too_long")
        else:
            yield [row._replace(hint_ids_P=prompts[0], other_ids_P=prompts[1] if form == "contrast" else None)]


def _hints(attempt: Span, retries: Sequence[Retry], make_row: RowMaker) -> list[list[int]] | str:
    """Return the prompts of retries as hints for a first try, or the reason why they cannot be."""
    prompts: list[list[int]] = []
    for trajectory, span in ((trajectory, a_try.first) for trajectory, a_try in retries):
        if _has_own_results(trajectory, attempt, span):
            return "several_steps"
        if media_in(trajectory.prompt(span)):
            return "media"
        if span.prompt_token_ids:
            prompts.append(list(span.prompt_token_ids))
        elif make_row.retokenise is not None:
            prompts.append(make_row.retokenise(trajectory, span)[0])
        else:
            return "retokenise_refused"
    return prompts


def without_hinted(compared: list[Row], alone: Iterable[Row]) -> tuple[list[Row], list[Dropped]]:
    """Drop first tries that are compared with siblings if they learn from a hint.

    Their rewards are still part of the others' baseline. Source: sample routing of SRPO, arXiv 2604.02288, without its
    weights by entropy.
    """
    hinted = {(row.trajectory_id, row.span_id) for row in alone if row.label == "self_distill"}
    routed = {*hinted} & {(row.trajectory_id, row.span_id) for row in compared if row.label == "attempt"}
    kept = [row for row in compared if row.label != "attempt" or (row.trajectory_id, row.span_id) not in hinted]
    return kept, [Dropped(*identity, "attempt", "self_distilled") for identity in sorted(routed)]


def _failed_first_tries(trajectories: Sequence[Trajectory]) -> Iterator[FailedTry]:
    """Yield each failed first try, once if branches share it, with the retries of all of them."""
    origin = origins(trajectories)
    of_origin: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        of_origin.setdefault(origin[trajectory.trajectory_id], []).append(trajectory)
    for group in groups(trajectories, "attempt"):
        mean = fmean(group.rewards_G)
        for trajectory, attempt in zip(group.trajectories_G, group.spans_G, strict=True):
            if trajectory.try_of(attempt).passed:
                continue
            retries: dict[str, Retry] = {}
            for other in of_origin[origin[trajectory.trajectory_id]]:
                if _has_try(other, trajectory, attempt):
                    retries |= {a_try.first.span_id: (other, a_try) for a_try in _retries(other)}
            yield FailedTry(trajectory, attempt, group.group_id, mean, [*retries.values()])


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
