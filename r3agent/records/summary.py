"""Summary statistics of a collection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any, Literal, TypeAlias

from r3agent.records.branching import rendering
from r3agent.records.credit import Group, groups
from r3agent.records.task_shares import TaskRate, TaskShares
from r3agent.records.trajectory import AT_ONCE, Record, Trajectory, Try
from r3agent.records.usage import usage_of

TryKind: TypeAlias = Literal["first_try", "retry_after_reflection", "retry_blind"]

PLACES: dict[TryKind, str] = {"first_try": "first", "retry_after_reflection": "retry", "retry_blind": "blind"}
"""Names of the kinds in the counts of a tally, which indexes store."""


class CollectSummary(Record):
    """Statistics of the episodes of one call, including those that were already stored."""

    episodes: int
    resumed: int
    """Number of these episodes that an earlier call stored."""
    outdated: int = 0
    """Stored episodes of the same tasks and policy version that do not count, because they were made with other
    settings, or before the task was changed."""
    errors: dict[str, int]
    """Episodes that ended with an error, by its kind; the other fields count only the spans of such episodes."""
    unlabelled: int
    """Episodes without an error and without any verdict yet."""
    first_try: float | None
    """Share of the first tries with a verdict that passed."""
    retry_after_reflection: float | None
    """Share of the retries after a reflection that passed, in episodes and branches; of a group that was drawn in
    parts, only the first counts, because its outcomes decided whether there were more."""
    retry_blind: float | None
    """Share of blind retries that passed."""
    by_task: dict[TryKind, TaskRate] = {}
    """Means over tasks of the three shares, as several tries of a task are not independent."""
    noisy_verdicts: int
    """Verdicts of a verifier that can be wrong, such as an LLM judge; with them the three shares are estimates."""
    tries: int = 0
    """Attempts and retries."""
    tries_of_policy: int = 0
    """Tries that asked the policy; the others asked other models alone, or made no call that is recorded."""
    steps_per_try: float | None = None
    """Mean number of model calls in a try."""
    try_errors: dict[str, int] = {}
    """Tries that ended with an error, by its kind; they have no verdict."""
    unfinished: dict[str, int] = {}
    """Tries without a whole answer, by reason, e.g. `length` for the token limit or `context_overflow`."""
    unfinished_reflections: dict[str, int] = {}
    """Reflections that were cut off or refused, by reason; those that ended before any answer earn nothing."""
    groups: int
    """Failed tries with reflections."""
    groups_with_variance: int
    """Groups that GRPO can learn from, because the rewards of their reflections differ."""
    mixed_versions: int
    """Episodes with answers of more than one policy version, because a deploy happened meanwhile."""
    tokens_sampled: int
    uncounted: int = 0
    """Calls whose sampled tokens the endpoint did not count, so that `tokens_sampled` lacks them."""
    recorded_prompts: dict[str, int] = {}
    """Branches of recorded failures by how their prompts compare with the recorded ones: see `Rendering` in
    `r3agent.records.branching`."""
    capabilities: dict[str, int]
    """Number of spans by capability."""
    notes: dict[str, int]
    """Number of spans by their `capability_note`."""
    seconds: float
    cost: float | None = None
    """Cost of the episodes of this call, at the policy's prices; `None` if it is not known."""
    ended_by: str | None = None
    """Limit that ended the collection; `None` if it ran every episode."""
    left: int = 0
    """Number of episodes that were not run because of it; the next call runs them."""
    exceeded: dict[str, float] = {}
    """Sampled tokens, cost or seconds beyond a budget, by its name: an episode that has begun is finished."""
    unreached: str | None = None
    """Target of groups that was not reached although every episode was run, and how many there are."""


class Tally:
    """Running counts of a collection, of which a summary is made; it keeps no trajectory.

    Attributes:
        episodes, errors, tokens_sampled, uncounted, groups, groups_with_variance: as in `CollectSummary`.
    """

    def __init__(self) -> None:
        self.answered: str | None = None
        """Id of the last episode that ended without an error."""
        self.in_flight = 0
        """Number of running episodes; `collect` sets it, as the cost."""
        self.cost: float | None = None
        self.groups = self.groups_with_variance = 0
        self._groups: dict[tuple[str, str], bool] = {}
        """Groups by the trajectory that branches, which may share them, go back to, and by a hash."""
        self._origins: dict[str, str] = {}
        self.episodes = self.tokens_sampled = self.uncounted = 0
        self.errors: Counter[str] = Counter()
        self._tries = self._asked = self._steps = self._unlabelled = self._noisy = self._mixed = 0
        self._passed: dict[str, list[int]] = {"first": [0, 0], "retry": [0, 0], "blind": [0, 0]}
        """Number of passed tries and of tries with a verdict."""
        self._try_errors: Counter[str] = Counter()
        self._unfinished: Counter[str] = Counter()
        self._unfinished_reflections: Counter[str] = Counter()
        self._capabilities: Counter[str] = Counter()
        self._notes: Counter[str] = Counter()
        self._recorded_prompts: Counter[str] = Counter()
        self.shares = {place: TaskShares() for place in PLACES.values()}
        """Tries of each kind that passed, by task."""

    def add(self, trajectory: Trajectory) -> None:
        """Count one trajectory; parents come before their branches."""
        spans, recorded = trajectory.sampled, trajectory.recorded
        tries = [a_try for a_try in trajectory.tries if a_try.first.span_id not in recorded]
        self.episodes += 1
        self._tries += len(tries)
        self._asked += sum(a_try.asked_policy for a_try in tries)
        self._steps += sum(len(a_try.steps) for a_try in tries)
        self._noisy += sum(s.verdict is not None and s.verdict.noisy for s in spans)
        self._mixed += len(trajectory.policy_versions) > 1
        used = usage_of(spans)
        self.tokens_sampled += used.sampled
        self.uncounted += used.uncounted
        self._try_errors.update(a_try.error.kind for a_try in tries if a_try.error)
        self._unfinished.update(a_try.unfinished for a_try in tries if a_try.unfinished)
        self._unfinished_reflections.update(s.unfinished for s in spans if s.label == "reflect" and s.unfinished)
        self._capabilities.update(s.capability for s in spans)
        self._notes.update(s.capability_note for s in spans if s.capability_note)
        if trajectory.error is not None:
            self.errors[trajectory.error.kind] += 1
            return
        self.answered = trajectory.trajectory_id
        self._unlabelled += all(s.verdict is None for s in spans)
        if how := rendering(trajectory):
            self._recorded_prompts[how] += 1
        for kind, passed in judged_tries(trajectory):
            counts = self._passed[PLACES[kind]]
            counts[0] += passed
            counts[1] += 1
            self.shares[PLACES[kind]].add(trajectory.task.id, passed, 1)
        found = {_key_of(group): group.has_variance for group in groups([trajectory])}
        self._add_groups(found, trajectory.trajectory_id, trajectory.parent_id)

    def merge(self, other: Tally) -> None:
        """Add the counts of other episodes; branches of one episode may be in both."""
        self._sum(vars(other))
        for (origin, key), varied in other._groups.items():
            self._add_groups({key: varied}, origin)
        for place, shares in other.shares.items():
            for counts in shares:
                self.shares[place].add(*counts)
        self.answered = other.answered or self.answered

    def summary(self, *, resumed: int = 0, outdated: int = 0, seconds: float = 0.0) -> CollectSummary:
        """Return the summary of what was counted."""
        return CollectSummary(
            episodes=self.episodes,
            resumed=resumed,
            outdated=outdated,
            errors=dict(self.errors),
            unlabelled=self._unlabelled,
            first_try=_share(*self._passed["first"]),
            retry_after_reflection=_share(*self._passed["retry"]),
            retry_blind=_share(*self._passed["blind"]),
            by_task={kind: shares.rate() for kind, place in PLACES.items() if (shares := self.shares[place]).judged},
            noisy_verdicts=self._noisy,
            tries=self._tries,
            tries_of_policy=self._asked,
            steps_per_try=_share(self._steps, self._tries),
            try_errors=dict(self._try_errors),
            unfinished=dict(self._unfinished),
            unfinished_reflections=dict(self._unfinished_reflections),
            groups=self.groups,
            groups_with_variance=self.groups_with_variance,
            mixed_versions=self._mixed,
            tokens_sampled=self.tokens_sampled,
            uncounted=self.uncounted,
            recorded_prompts=dict(self._recorded_prompts),
            capabilities=dict(self._capabilities),
            notes=dict(self._notes),
            seconds=round(seconds, 2),
        )

    def counts(self) -> dict[str, Any]:
        """Return the counts as JSON, for `add_counts`; of the groups of one trajectory."""
        found = {name: getattr(self, name) for name in COUNTS}
        groups = {key: varied for (_, key), varied in self._groups.items()}
        return {name: value for name, value in {**found, "groups": groups}.items() if value}

    def add_counts(self, counts: Mapping[str, Any], trajectory_id: str, parent_id: str | None, *, task_id: str) -> None:
        """Add the `counts` of one trajectory; parents come before their branches."""
        self._sum(counts)
        for place, passed in counts.get("_passed", {}).items():
            self.shares[place].add(task_id, *passed)
        self._add_groups(counts.get("groups", {}), trajectory_id, parent_id)
        if "errors" not in counts:
            self.answered = trajectory_id

    def _sum(self, counts: Mapping[str, Any]) -> None:
        for name in COUNTS & counts.keys():
            value, added = getattr(self, name), counts[name]
            if isinstance(value, int):
                setattr(self, name, value + added)
            elif isinstance(value, Counter):
                value.update(added)
            else:
                for kind, (passed, judged) in added.items():
                    value[kind] = [value[kind][0] + passed, value[kind][1] + judged]

    def _add_groups(self, found: Mapping[str, bool], trajectory_id: str, parent_id: str | None = None) -> None:
        origin = trajectory_id
        if parent_id is not None:
            origin = self._origins.get(parent_id, parent_id)
            self._origins[trajectory_id] = origin
        for key, varied in found.items():
            if (origin, key) not in self._groups:
                self._groups[origin, key] = varied
                self.groups += 1
                self.groups_with_variance += varied


OTHERS = {"in_flight", "cost", "answered", "groups", "groups_with_variance", "shares", "_groups", "_origins"}

COUNTS = {*vars(Tally())} - OTHERS
"""Fields of `Tally` that are sums over trajectories."""


def summarise(
    episodes: Iterable[Trajectory], *, resumed: int = 0, outdated: int = 0, seconds: float = 0.0
) -> CollectSummary:
    """Summarise trajectories."""
    tally = Tally()
    for episode in episodes:
        tally.add(episode)
    return tally.summary(resumed=resumed, outdated=outdated, seconds=seconds)


def _key_of(group: Group) -> str:
    text = repr([[span.span_id for span in group.spans_G], group.rewards_G])
    return blake2b(text.encode(), digest_size=8).hexdigest()


def judged_tries(trajectory: Trajectory) -> Iterator[tuple[TryKind, bool]]:
    """Yield the kind of each try with a verdict, and if it passed.

    Those that a branch took from its parent, or that were drawn because of the outcomes of others, are left out; an
    episode that ended with an error has none.
    """
    if trajectory.error is not None:
        return
    for a_try in trajectory.tries:
        if a_try.passed is None or a_try.first.span_id in trajectory.recorded:
            continue
        if a_try.last is trajectory.attempt:
            yield "first_try", a_try.passed
        elif a_try.is_blind:
            yield "retry_blind", a_try.passed
        elif a_try.label == "retry" and is_even_sample(trajectory, a_try):
            yield "retry_after_reflection", a_try.passed


def is_even_sample(trajectory: Trajectory, retry: Try) -> bool:
    """Return False for a retry of a control branch, or one that was drawn because of the outcomes of others."""
    if trajectory.control is not None:
        return False
    reflection = trajectory.parent(retry.first)
    if (at_once := trajectory.metadata.get(AT_ONCE)) is None or reflection is None:
        return True
    failed = trajectory.parent(reflection)
    return failed is None or reflection in trajectory.children(failed, "reflect")[:at_once]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
