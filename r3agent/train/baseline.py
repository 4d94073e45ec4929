"""Baseline of a reward without siblings: the mean of other tasks, corrected by the difficulty of its own.

    baseline = mean reward of such spans of other tasks + sum of (x - mean x on other tasks) / (n + PRIOR)

Such spans have the same label, and were sampled by the same policy version. The n rewards x are the evidence on the
task: those of the span's siblings, and those of other episodes of the task, of any label and version. Each is compared
with the evidence on such spans of other tasks, because these were chosen alike: only failures have reflections.

Nothing that depends on the span enters its baseline, neither its own reward nor what follows it, so that the policy
gradient has no bias. Sources: the leave-one-out baseline of RLOO (arXiv 2402.14740), over tasks in place of the samples
of a prompt; and SPO (arXiv 2509.13232), which tracks each prompt's success over policy versions. Here evidence of all
labels is shrunk alike, as a prior that weighs as much as `PRIOR` rewards would, although a task whose first tries pass
may be no easier to reflect on: so the sum may leave the range of the reward, and is clamped to it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias, get_args

from r3agent.records.branching import origins
from r3agent.records.credit import CreditLabel, Group, groups
from r3agent.records.trajectory import Trajectory
from r3agent.train.config import TrainConfig
from r3agent.train.leaks import apply_leak_setting

PRIOR = 4.0
"""Number of rewards that the mean of other tasks weighs as much as."""

Kind: TypeAlias = tuple[CreditLabel, str | None]
"""Label of spans, and the version that sampled them."""
Place: TypeAlias = tuple[CreditLabel, str, str]
"""Label of a span, and the ids of its trajectory and its own."""
Sums: TypeAlias = dict[Kind, tuple[int, float]]
"""Number and sum of rewards."""


class Known(NamedTuple):
    """The reward of a span, and what is known on its task without it."""

    kind: Kind
    reward: float
    evidence: Sums


class Baselines:
    """Sums over all tasks of a training, which are few, however many tasks there are."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._rewards: Sums = {}
        self._evidence: dict[Kind, Sums] = defaultdict(dict)
        """Evidence on the spans of each kind."""

    def add(self, trajectories: Sequence[Trajectory]) -> None:
        """Add all trajectories of some tasks."""
        for spans in _by_task(trajectories, self._config):
            self._add(spans.values())

    def of(self, trajectories: Sequence[Trajectory]) -> dict[Place, float | None]:
        """Compute the baselines of spans, for all trajectories of some tasks that were added.

        It is `None` for a span without siblings if no other task has such a span.
        """
        found: dict[Place, float | None] = {}
        for spans in _by_task(trajectories, self._config):
            own = Baselines(self._config)
            own._add(spans.values())
            found |= {place: self._baseline(known, own) for place, known in spans.items()}
        return found

    def _add(self, spans: Iterable[Known]) -> None:
        for kind, reward, evidence in spans:
            _add(self._rewards, kind, 1, reward)
            for other, (n, total) in evidence.items():
                _add(self._evidence[kind], other, n, total)

    def _baseline(self, known: Known, own: Baselines) -> float | None:
        n, total = _without(self._rewards, own._rewards).get(known.kind, (0, 0.0))
        if not n:
            siblings, total = known.evidence.get(known.kind, (0, 0.0))
            return total / siblings if siblings else None
        expected = _without(self._evidence[known.kind], own._evidence[known.kind])
        weight, surplus = PRIOR, 0.0
        for kind in known.evidence.keys() & expected.keys():
            (here, earned), (there, usual) = known.evidence[kind], expected[kind]
            weight, surplus = weight + here, surplus + earned - here * usual / there
        lowest = -1.0 if self._config.credit.get(known.kind[0]) == "lift" else 0.0
        return min(1.0, max(lowest, total / n + surplus / weight))  # scores are at most 1


def _by_task(trajectories: Sequence[Trajectory], config: TrainConfig) -> Iterator[dict[Place, Known]]:
    """Yield the spans of each task that have a reward, of credited labels and of others."""
    of_task: dict[str, list[Group]] = {}
    for label in get_args(CreditLabel):
        for group in apply_leak_setting(groups(trajectories, label, config.credit.get(label)), config):
            of_task.setdefault(group.trajectories_G[0].task.digest, []).append(group)
    origin: Mapping[str, str] = origins(trajectories)
    for found in of_task.values():
        whole: Sums = {}
        of_origin: dict[str, Sums] = defaultdict(dict)
        for group in found:
            for trajectory, earned in zip(group.trajectories_G, group.rewards_G, strict=True):
                for sums in (whole, of_origin[origin[trajectory.trajectory_id]]):
                    _add(sums, _kind(group), 1, earned)
        spans: dict[Place, Known] = {}
        for group in found:
            kind, n, total = _kind(group), len(group.rewards_G), sum(group.rewards_G)
            for trajectory, span, earned in zip(group.trajectories_G, group.spans_G, group.rewards_G, strict=True):
                evidence = _without(whole, of_origin[origin[trajectory.trajectory_id]])
                if group.label != "attempt" and n > 1:  # siblings of a first try are other episodes
                    _add(evidence, kind, n - 1, total - earned)
                counted_twice = "reflect" if group.label == "retry" else "retry"  # a retry is its reflection's reward
                evidence = {other: sums for other, sums in evidence.items() if other[0] != counted_twice}
                spans[group.label, trajectory.trajectory_id, span.span_id] = Known(kind, earned, evidence)
        yield spans


def _kind(group: Group) -> Kind:
    return group.label, group.spans_G[0].policy_version


def _add(sums: Sums, kind: Kind, n: int, total: float) -> None:
    before, earlier = sums.get(kind, (0, 0.0))
    sums[kind] = before + n, earlier + total


def _without(sums: Sums, part: Sums) -> Sums:
    """Subtract a part of the sums; kinds of which nothing is left are left out."""
    rest = {kind: (n - part.get(kind, (0, 0.0))[0], total) for kind, (n, total) in sums.items()}
    return {kind: (n, total - part.get(kind, (0, 0.0))[1]) for kind, (n, total) in rest.items() if n}
