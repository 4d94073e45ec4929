"""Statistics of a store: its episodes by version, split, source and outcome, its groups, and the shares that passed."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import Field

from r3agent._util.checked import checked
from r3agent.evaluate.statistics import Rate, rate
from r3agent.records.branching import origins
from r3agent.records.credit import CreditLabel, credit_label, groups
from r3agent.records.record import Record
from r3agent.records.summary import Tally, TryKind, is_even_sample, judged_tries
from r3agent.records.trajectory import SOURCE, SPLIT, Trajectory
from r3agent.records.usage import usage_of
from r3agent.store.batches import StoredTrajectories
from r3agent.store.labels import label_files
from r3agent.store.shards import Unreadable, shards, store_at
from r3agent.store.verdicts import read_layers, verdict_sources, verifiers_of

UNKNOWN = "unknown"
"""Version, split or source that a record does not state, such as the version behind what an application recorded."""

BRANCH = "branch_"
"""Prefix of the kinds of tries that branches sampled."""


class PassRate(Rate):
    """Mean over tasks of the share of their tries that passed, with its interval over tasks."""

    passed: int
    """Tries that passed."""
    tries: int
    """Tries with a verdict."""


class Share(Record):
    """Episodes of one version, split or source."""

    episodes: int
    tokens_sampled: int
    first_try: PassRate | None
    """Pass rate of first tries; `None` without a verdict."""


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
    pass_rates: dict[str, PassRate] = Field(default={})
    """Pass rates of first tries, retries after a reflection and blind retries, those of branches apart, as
    `branch_retry_after_reflection`."""
    uneven_retries: int = 0
    """Retries with a verdict that no pass rate counts, because they were drawn after others had failed, or continue the
    reflection of a control."""
    verdicts: dict[str, int] = Field(default={})
    """Tries with a verdict, by the verifier whose verdict counts, or `people` for a label."""
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
    "uneven_retries",
)
"""Fields that are sums over batches of whole tasks."""


class PassRates:
    """Pass rates by kind of try, from batches of whole tasks; of each task only the share is kept."""

    def __init__(self) -> None:
        self._tasks: dict[str, dict[str, list[int]]] = {}
        """Passed and judged tries by kind and task of the current batch."""
        self._shares: dict[str, array[float]] = {}
        self._counts: dict[str, list[int]] = {}

    def add(self, trajectory: Trajectory) -> None:
        """Count the tries of a trajectory."""
        of = "" if trajectory.parent_id is None else BRANCH
        for kind, passed in judged_tries(trajectory):
            counts = self._tasks.setdefault(of + kind, {}).setdefault(trajectory.task.digest, [0, 0])
            counts[0] += passed
            counts[1] += 1

    def end_batch(self) -> None:
        """End a batch: its tasks are in no other one."""
        for kind, tasks in self._tasks.items():
            shares, counts = self._shares.setdefault(kind, array("d")), self._counts.setdefault(kind, [0, 0])
            for passed, judged in tasks.values():
                shares.append(passed / judged)
                counts[0] += passed
                counts[1] += judged
        self._tasks.clear()

    def rates(self) -> dict[str, PassRate]:
        """Return the rates by kind, those of branches last."""
        kinds = [of + kind for of in ("", BRANCH) for kind in get_args(TryKind) if of + kind in self._shares]
        return {kind: self._rate(kind) for kind in kinds}

    def _rate(self, kind: str) -> PassRate:
        passed, tries = self._counts[kind]
        return PassRate(**rate(self._shares[kind], tries).model_dump(), passed=passed, tries=tries)


class _Share:
    def __init__(self) -> None:
        self.episodes = self.tokens = 0
        self.rates = PassRates()

    def share(self) -> Share:
        first = self.rates.rates().get("first_try")
        return Share(episodes=self.episodes, tokens_sampled=self.tokens, first_try=first)


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
    found = _count(StoredTrajectories(store, unreadable=unreadable), verifiers_of(read_layers(store)))
    size = sum(path.stat().st_size for path in files)
    return DataStats(directory=str(store), files=len(files), bytes=size, unreadable=len(unreadable), **found)


def _count(trajectories: StoredTrajectories, verifiers: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    labels: Counter[CreditLabel] = Counter()
    outcomes: Counter[str] = Counter()
    verdicts: Counter[str] = Counter()
    capabilities: Counter[str] = Counter()
    counts = Counter(dict.fromkeys(COUNTS, 0))
    rates = PassRates()
    shares: dict[str, dict[str, _Share]] = {"versions": {}, "splits": {}, "sources": {}}
    for batch in trajectories.batches():
        tally = Tally()
        origin, source = origins(batch), {t.trajectory_id: t.metadata.get(SOURCE) for t in batch}
        for trajectory in batch:
            tally.add(trajectory)
            labels.update(credit_label(trajectory, s) for s in trajectory.sampled if not trajectory.is_step(s))
            outcomes[_outcome(trajectory)] += 1
            verdicts.update(verdict_sources(trajectory, verifiers))
            keys = {
                "versions": next(iter(trajectory.policy_versions), None),
                "splits": trajectory.metadata.get(SPLIT),
                "sources": source[trajectory.trajectory_id] or source.get(origin[trajectory.trajectory_id]),
            }
            used = usage_of(trajectory.sampled)
            counts["tokens_prompt"] += used.prompt
            own = [shares[by].setdefault(str(key or UNKNOWN), _Share()) for by, key in keys.items()]
            rates.add(trajectory)
            for share in own:
                share.episodes += 1
                share.tokens += used.sampled
                share.rates.add(trajectory)
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
            uneven_retries=sum(map(_uneven_retries, batch)),
        )
        capabilities.update(tally.summary().capabilities)
        for of_tasks in (rates, *(share.rates for keyed in shares.values() for share in keyed.values())):
            of_tasks.end_batch()
    return {
        **counts,
        "labels": dict(labels),
        "outcomes": dict(outcomes),
        "capabilities": dict(capabilities),
        "pass_rates": rates.rates(),
        "verdicts": dict(sorted(verdicts.items())),
        **{by: {key: share.share() for key, share in sorted(keyed.items())} for by, keyed in shares.items()},
    }


def _uneven_retries(trajectory: Trajectory) -> int:
    if trajectory.error is not None:
        return 0
    own = (t for t in trajectory.tries if t.label == "retry" and t.first.span_id not in trajectory.recorded)
    return sum(t.passed is not None and not t.is_blind and not is_even_sample(trajectory, t) for t in own)


def _outcome(trajectory: Trajectory) -> str:
    if trajectory.error is not None:
        return "errored"
    return {True: "passed", False: "failed", None: "unlabelled"}[trajectory.passed]
