"""Rows that are not compared with siblings: distilled retries, imitated tries, and first tries with a hint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import sqrt
from statistics import fmean

from r3agent.records.credit import follows_success, groups
from r3agent.records.media import media_in
from r3agent.records.prompts import NOT_RUN
from r3agent.records.trajectory import Span, Trajectory, Try
from r3agent.train.row import Dropped, Row, RowMaker


def rows_without_siblings(trajectories: Sequence[Trajectory], make_row: RowMaker) -> Iterator[list[Row] | Dropped]:
    """Make the rows of `distill`, `imitate` and `self_distill`."""
    config = make_row.config
    if config.distill:
        yield from _distilled(trajectories, make_row)
    if config.imitate:
        yield from _imitated(trajectories, make_row)
    if config.self_distill:
        yield from _self_distilled(trajectories, make_row)


def _distilled(trajectories: Iterable[Trajectory], make_row: RowMaker) -> Iterator[list[Row] | Dropped]:
    """Make a row from each retry, after a reflection on a failed first try, that passed; or from all, as configured.

    The row joins the group of the task's first tries, whose prompt it shares; its advantage is its weight.
    Source: RLTF-SD, arXiv 2602.02482: (r_retry - mean r_first) · log π(retry | prompt of the first try), without an
    importance weight, because the retry was not sampled from that prompt. The mean is over the task's first tries.

    Both tries must be one completion each: the later steps of an agent's try follow the results of its own calls, which
    the other try did not see.
    """
    config = make_row.config
    for trajectory, attempt, group_id, mean in _failed_first_tries(trajectories):
        for a_try in _retries(trajectory):
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


def _self_distilled(trajectories: Iterable[Trajectory], make_row: RowMaker) -> Iterator[list[Row] | Dropped]:
    """Make a row from each failed first try after which a retry passed; the prompt of that retry is its hint.

    The advantage is the weight, to be multiplied with that of each token (`hints`). SDPO's hint is a right answer or
    feedback without the first try itself; this one has both the first try and the reflection, as they were recorded.
    With `weighted`, the share of retries that passed stands for SC-SDPO's pass rate of the task, whose first try may be
    its only one.
    """
    config, form = make_row.config, make_row.config.self_distill_form
    for trajectory, attempt, group_id, _ in _failed_first_tries(trajectories):
        retries = list(_retries(trajectory))
        passed, failed = ([a_try.first for a_try in retries if a_try.passed is wanted] for wanted in (True, False))
        if not passed or (not failed and form != "hint"):
            continue
        p = len(passed) / len(retries)
        prompts = _hints(trajectory, attempt, [passed[0], *failed[:1]] if form == "contrast" else passed[:1], make_row)
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


def _hints(trajectory: Trajectory, attempt: Span, retries: Sequence[Span], make_row: RowMaker) -> list[list[int]] | str:
    """Return the prompts of retries as hints for a first try, or the reason why they cannot be."""
    prompts: list[list[int]] = []
    for span in retries:
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


def _failed_first_tries(trajectories: Iterable[Trajectory]) -> Iterator[tuple[Trajectory, Span, str, float]]:
    """Yield each failed first try, the id of its group, and the mean success of the task's first tries."""
    for group in groups(trajectories, "attempt"):
        mean = fmean(group.rewards_G)
        for trajectory, attempt in zip(group.trajectories_G, group.spans_G, strict=True):
            if not trajectory.try_of(attempt).passed:
                yield trajectory, attempt, group.group_id, mean


def _retries(trajectory: Trajectory) -> Iterator[Try]:
    """Yield the retries after a reflection that have a verdict, and follow no success."""
    judged = (t for t in trajectory.tries if t.label == "retry" and not t.is_blind and t.verdict is not None)
    return (t for t in judged if not follows_success(trajectory, t.first))


def _has_own_results(trajectory: Trajectory, attempt: Span, retry: Span) -> bool:
    """Return True if one of two tries has several steps, or follows results of calls that the other did not make."""
    above = {span.span_id for span in trajectory.path(attempt)}
    between = [m for span in trajectory.path(retry) if span.span_id not in above for m in span.request]
    has_results = any(m.get("role") == "tool" and m.get("content") != NOT_RUN for m in between)
    return has_results or any(len(trajectory.try_of(span).steps) > 1 for span in (attempt, retry))
