"""Statistics of a store: its episodes by version, split, source and outcome, its groups, and the shares that passed."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from r3agent._util.checked import checked
from r3agent.evaluate.statistics import Rate, rate
from r3agent.records.branching import origins
from r3agent.records.credit import CreditLabel, credit_label, groups
from r3agent.records.record import Record
from r3agent.records.summary import Tally, is_even_sample
from r3agent.records.trajectory import SOURCE, SPLIT, Trajectory
from r3agent.records.usage import usage_of
from r3agent.store.batches import StoredTrajectories
from r3agent.store.labels import label_files
from r3agent.store.shards import Unreadable, shards, store_at

UNKNOWN = "unknown"
"""Version, split or source that a record does not state, such as the split of what an application recorded."""


class Share(Record):
    """Episodes of one version, split or source."""

    episodes: int
    tokens_sampled: int
    first_try: Rate | None
    """Share of first tries that passed, with its interval over tasks; `None` without a verdict."""


class DataStats(Record):
    """Statistics of a store."""

    directory: str
    files: int
    bytes: int
    """Size of the shards and labels."""
    unreadable: int
    """Lines that are no record; `r3agent data check` lists them."""
    episodes: int
    branches: int
    """Episodes that branched off another one."""
    tasks: int
    labels: dict[CreditLabel, int]
    """Reflections and tries, by label."""
    outcomes: dict[str, int]
    """Episodes that passed, failed, have no verdict yet (`unlabelled`), or ended with an error (`errored`)."""
    capabilities: dict[str, int]
    """Spans by capability."""
    tokens_prompt: int
    """Prompt tokens, as far as the endpoints counted them."""
    tokens_sampled: int
    uncounted: int = 0
    """Calls whose sampled tokens the endpoints did not count."""
    groups: int
    """Failed tries with reflections."""
    groups_with_variance: int
    attempt_groups: int
    """Tasks with several first tries of one version."""
    attempt_groups_with_variance: int
    pass_rates: dict[str, Rate] = Field(default={})
    """Share that passed of first tries, retries after a reflection and blind retries, with the 95 % interval over
    tasks."""
    versions: dict[str, Share]
    """Episodes by policy version; one that several versions answered counts for the first."""
    splits: dict[str, Share]
    sources: dict[str, Share]
    """Episodes by the source of their task; a branch has that of the episode that it branched off."""


COUNTS = (
    "episodes",
    "branches",
    "tasks",
    "tokens_prompt",
    "tokens_sampled",
    "uncounted",
    "groups",
    "groups_with_variance",
    "attempt_groups",
    "attempt_groups_with_variance",
)
"""Fields that are sums over batches of whole tasks."""


class _Rates:
    """Passed and judged tries of each task, of which only the shares are kept."""

    def __init__(self) -> None:
        self.tasks: dict[str, list[int]] = {}
        """Tasks of the current batch."""
        self.shares, self.judged = array("d"), 0

    def add(self, task: str, passed: bool | None) -> None:
        if passed is not None:
            counts = self.tasks.setdefault(task, [0, 0])
            counts[0] += passed
            counts[1] += 1

    def end_batch(self) -> None:
        self.shares.extend(passed / judged for passed, judged in self.tasks.values())
        self.judged += sum(judged for _, judged in self.tasks.values())
        self.tasks.clear()

    def rate(self) -> Rate | None:
        return rate(self.shares, self.judged) if self.shares else None


class _Share:
    def __init__(self) -> None:
        self.episodes = self.tokens = 0
        self.first = _Rates()

    def share(self) -> Share:
        return Share(episodes=self.episodes, tokens_sampled=self.tokens, first_try=self.first.rate())


@checked
def stats(directory: str | Path) -> DataStats:
    """Count what a store or run directory has, with its labels.

    Raises:
        ConfigError: there is no such directory.
        SchemaVersionError: another version of r3agent wrote it.
    """
    store = store_at(directory)
    unreadable: list[Unreadable] = []
    files = [*shards(store), *label_files(store)]
    found = _count(StoredTrajectories(store, unreadable=unreadable))
    size = sum(path.stat().st_size for path in files)
    return DataStats(directory=str(store), files=len(files), bytes=size, unreadable=len(unreadable), **found)


def _count(trajectories: StoredTrajectories) -> dict[str, Any]:
    labels: Counter[CreditLabel] = Counter()
    outcomes: Counter[str] = Counter()
    capabilities: Counter[str] = Counter()
    counts = Counter(dict.fromkeys(COUNTS, 0))
    rates = {"first_try": _Rates(), "retry_after_reflection": _Rates(), "retry_blind": _Rates()}
    shares: dict[str, dict[str, _Share]] = {"versions": {}, "splits": {}, "sources": {}}
    for batch in trajectories.batches():
        tally = Tally()
        origin, source = origins(batch), {t.trajectory_id: t.metadata.get(SOURCE) for t in batch}
        for trajectory in batch:
            tally.add(trajectory)
            labels.update(credit_label(trajectory, s) for s in trajectory.sampled if not trajectory.is_step(s))
            outcomes[_outcome(trajectory)] += 1
            keys = {
                "versions": next(iter(trajectory.policy_versions), None),
                "splits": trajectory.metadata.get(SPLIT),
                "sources": source[trajectory.trajectory_id] or source.get(origin[trajectory.trajectory_id]),
            }
            used = usage_of(trajectory.sampled)
            counts["tokens_prompt"] += used.prompt
            own = [shares[by].setdefault(str(key or UNKNOWN), _Share()) for by, key in keys.items()]
            for share in own:
                share.episodes += 1
                share.tokens += used.sampled
            if trajectory.error is None:
                _rate_tries(trajectory, rates, [share.first for share in own])
        attempts = [group for group in groups(batch, "attempt") if len(group.spans_G) > 1]
        counts.update(
            episodes=len(batch),
            branches=sum(t.parent_id is not None for t in batch),
            tasks=len({t.task.digest for t in batch}),
            tokens_sampled=tally.tokens_sampled,
            uncounted=tally.uncounted,
            groups=tally.groups,
            groups_with_variance=tally.groups_with_variance,
            attempt_groups=len(attempts),
            attempt_groups_with_variance=sum(group.has_variance for group in attempts),
        )
        capabilities.update(tally.summary().capabilities)
        for of_tasks in (*rates.values(), *(share.first for keyed in shares.values() for share in keyed.values())):
            of_tasks.end_batch()
    return {
        **counts,
        "labels": dict(labels),
        "outcomes": dict(outcomes),
        "capabilities": dict(capabilities),
        "pass_rates": {kind: found for kind, of_tasks in rates.items() if (found := of_tasks.rate())},
        **{by: {key: share.share() for key, share in sorted(keyed.items())} for by, keyed in shares.items()},
    }


def _rate_tries(trajectory: Trajectory, rates: Mapping[str, _Rates], first: Iterable[_Rates]) -> None:
    task = trajectory.task.digest
    if trajectory.attempt and not trajectory.recorded:
        for of_tasks in (rates["first_try"], *first):
            of_tasks.add(task, trajectory.try_of(trajectory.attempt).passed)
    for a_try in trajectory.tries:
        if a_try.is_blind:
            rates["retry_blind"].add(task, a_try.passed)
        elif a_try.label == "retry" and is_even_sample(trajectory, a_try):
            rates["retry_after_reflection"].add(task, a_try.passed)


def _outcome(trajectory: Trajectory) -> str:
    if trajectory.error is not None:
        return "errored"
    return {True: "passed", False: "failed", None: "unlabelled"}[trajectory.passed]
