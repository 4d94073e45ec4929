"""Credit: the reward of a span, and the siblings it is compared with.

    label         reward sources, the first by default        its siblings, a GRPO group
    attempt       success | score of its own verdict          first tries of one task
    reflect       retry_success | retry_score | lift          reflections of one failed try
    retry         success | score                             retries after one reflection
    blind_retry   success | score                             blind retries of one failed try

Siblings are sampled from the same prompt by one policy version, with the same settings but the seed. Spans of different
failures are in no group: their mean would be a biased baseline. A try of several steps is one sibling, by its first
span, and each of its steps has its reward. What follows a try that is right, perhaps by a later label, earns nothing:
it repaired no failure.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Iterator, Mapping
from statistics import fmean
from typing import Literal, TypeAlias, get_args

from r3agent._util.messages import did_you_mean
from r3agent.errors import ArgumentError
from r3agent.records.branching import origins
from r3agent.records.trajectory import Record, Span, Trajectory, Try, each_trajectory, mean_success

CreditLabel: TypeAlias = Literal["attempt", "reflect", "retry", "blind_retry"]
"""A span's label, and whether a retry was blind."""

RewardSource: TypeAlias = Literal["retry_success", "retry_score", "lift", "success", "score"]
"""Source of a span's reward.

The reward of a reflection is the success of its retries, their score, or their success minus that of the blind retries;
the reward of any other span is the success or the score of its own verdict.
"""

SOURCES: Mapping[str, tuple[RewardSource, ...]] = {
    "attempt": ("success", "score"),
    "reflect": ("retry_success", "retry_score", "lift"),
    "retry": ("success", "score"),
    "blind_retry": ("success", "score"),
}
"""Valid sources for each label; the first is the default of `groups` and `reward`."""


class Group(Record):
    """Sibling spans and their rewards: one GRPO group of G."""

    label: CreditLabel
    parent: Span | None
    """Parent of all spans; `None` for attempts, which have only the task above them."""
    trajectories_G: tuple[Trajectory, ...]
    """Trajectory of each span: the same for all, except for attempts."""
    spans_G: tuple[Span, ...]
    """Reflections, or the first spans of tries."""
    rewards_G: tuple[float, ...]

    @property
    def has_variance(self) -> bool:
        return len(set(self.rewards_G)) > 1

    @property
    def group_id(self) -> str:
        """Id made of the first trajectory, the parent if there is one, the label and the first span.

        The first span is needed because the children of one parent may have different prompts.
        """
        parent = "" if self.parent is None else self.parent.span_id
        return f"{self.trajectories_G[0].trajectory_id}/{parent}/{self.label}/{self.spans_G[0].span_id}"


def credit_label(trajectory: Trajectory, span: Span) -> CreditLabel:
    """Return the span's label, with blind retries told apart."""
    return "blind_retry" if trajectory.is_blind(span) else span.label


def check_label(label: str) -> None:
    """Check that a label exists.

    Raises:
        ArgumentError: there is no such label; the message suggests the nearest.
    """
    labels = get_args(CreditLabel)
    if label not in labels:
        raise ArgumentError(f"unknown label {label!r}; {did_you_mean(label, labels)}")


def check_source(label: str, source: str) -> None:
    """Check that a reward source is valid for a label.

    Raises:
        ArgumentError: there is no such label, or the source is not valid for it; the message lists the valid ones.
    """
    check_label(label)
    if source not in (fitting := SOURCES[label]):
        raise ArgumentError(f"{label} = {source!r}: what fits {label} is {' or '.join(map(repr, fitting))}")


def reward(
    trajectory: Trajectory, span: Span, source: RewardSource | None = None, *, leaked: bool = False
) -> float | None:
    """Compute the reward of a span; `None` without a verdict on it, on its retries or (`lift`) on the control.

    It is also `None` for a span that `follows_success`.

    A reflection that ended before any answer, e.g. cut off within its thinking, earns as if every retry of it had
    failed: they did not read it.

    Source: in arXiv 2505.24726 the reward is the success of one retry, 0 or 1; with M retries this is their mean.

    Args:
        leaked: compute the reward as if every retry of this reflection had failed.

    Raises:
        ArgumentError: the source is not valid for the span's label.
    """
    label = credit_label(trajectory, span)
    source = source or SOURCES[label][0]
    check_source(label, source)
    if follows_success(trajectory, span):
        return None
    if source in ("success", "score"):
        return _own(trajectory.try_of(span), source)
    retry_source = "score" if source == "retry_score" else "success"
    scores = [own for retry in trajectory.retries(span) if (own := _own(retry, retry_source)) is not None]
    if not scores:
        return None
    earned = 0.0 if leaked or span.unanswered else fmean(scores)
    if source != "lift":
        return earned
    control = mean_success(_control(trajectory, span))
    return None if control is None else earned - control


def follows_success(trajectory: Trajectory, span: Span) -> bool:
    """Return True for a reflection or retry below a try that passed, by the verdict that counts now.

    The loop follows failures only, but a label or another verifier may overrule the verdict later, and applications
    reflect as they like. A try without a verdict is no success.
    """
    below = span
    while below.label != "attempt":
        first = below if below.label == "reflect" else trajectory.try_of(below).first
        if (above := trajectory.parent(first)) is None:
            return False
        if above.label != "reflect" and trajectory.try_of(above).passed:
            return True
        below = above
    return False


def payers(trajectory: Trajectory, span: Span, source: RewardSource) -> list[Try]:
    """Return the tries whose verdicts determine the reward of `span`."""
    if source in ("success", "score"):
        return [trajectory.try_of(span)]
    return [*trajectory.retries(span), *(_control(trajectory, span) if source == "lift" else [])]


def _control(trajectory: Trajectory, reflection: Span) -> list[Try]:
    """Return the blind retries of the try that was reflected on."""
    above = trajectory.parent(reflection)
    return [] if above is None else trajectory.retries(above)


def groups(
    trajectories: Iterable[Trajectory], label: CreditLabel = "reflect", source: RewardSource | None = None
) -> Iterator[Group]:
    """Yield the groups of one label, in order of their first span; spans without a reward are left out.

    A first try that branches share is one sibling, with the verdict of the last of them; a group that branches share
    with the same rewards is yielded once.

    Raises:
        ArgumentError: there is no such label, the source is not valid for it, or `trajectories` has something else.
    """
    check_label(label)
    check_source(label, source := source or SOURCES[label][0])
    return _groups(list(each_trajectory(trajectories)), label, source)


def _groups(trajectories: list[Trajectory], label: CreditLabel, source: RewardSource) -> Iterator[Group]:
    siblings: dict[Hashable, dict[Hashable, tuple[Trajectory, Span, float]]] = {}
    origin = origins(trajectories)
    for number, trajectory in enumerate(trajectories):
        for span in trajectory.spans if trajectory.control is None else ():
            if credit_label(trajectory, span) != label or trajectory.is_step(span):
                continue
            if span.span_id in trajectory.recorded:  # a failure that was chosen, perhaps of another policy
                continue
            if (earned := reward(trajectory, span, source)) is None:
                continue
            place = _first_try(trajectory, span) if label == "attempt" else (number, span.parent_id, _asked(span))
            sampled = _sampled(trajectory, span)
            key = place, sampled.policy_version, _drawn_with(sampled)  # the weights may have been swapped meanwhile
            siblings.setdefault(key, {})[origin[trajectory.trajectory_id], span.span_id] = (trajectory, span, earned)
    shared: set[Hashable] = set()
    for by_id in siblings.values():
        trajectories_G, spans_G, rewards_G = zip(*by_id.values(), strict=True)
        if (group := (tuple(by_id), rewards_G)) in shared:
            continue
        shared.add(group)
        yield Group(
            label=label,
            parent=trajectories_G[0].parent(spans_G[0]),
            trajectories_G=trajectories_G,
            spans_G=spans_G,
            rewards_G=rewards_G,
        )


def _own(a_try: Try, source: str) -> float | None:
    if (verdict := a_try.verdict) is None:
        return None
    return verdict.score if source == "score" else float(verdict.passed)


def _sampled(trajectory: Trajectory, span: Span) -> Span:
    """Return the first call of the policy in the try that begins with `span`; a router's call may come before it."""
    steps = (span,) if span.label == "reflect" else trajectory.try_of(span).steps
    return next((step for step in steps if step.purpose is None), span)


def _asked(span: Span) -> str:
    """Return a key for the request of a span: the graph sends the same to all children, traced code may not."""
    return json.dumps([span.standalone, span.request], sort_keys=True, default=str)


def _drawn_with(span: Span) -> str:
    """Return a key for the sampling settings of a span, without the seed."""
    given = {name: value for name, value in span.sampling.items() if name != "seed" and value not in (None, [], {})}
    return json.dumps(given, sort_keys=True, default=str)


def _first_try(trajectory: Trajectory, attempt: Span) -> Hashable:
    """Return the key that first tries of several episodes share if they are siblings: task, verifier and prompt.

    The task is the whole of it, because a corrected gold answer is judged by another measure.
    """
    asked = json.dumps(trajectory.prompt(attempt), sort_keys=True, default=str)
    return trajectory.task.digest, trajectory.verifier, asked
