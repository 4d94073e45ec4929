"""Statistics of a store: its episodes by version, split, source and outcome, its groups, and the shares that passed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import Field

from r3agent._util.checked import checked
from r3agent.evaluate.statistics import Rate, rate
from r3agent.records.credit import CreditLabel, credit_label, groups
from r3agent.records.record import Record
from r3agent.records.summary import Tally, is_even_sample
from r3agent.records.trajectory import SOURCE, SPLIT, Trajectory, origins
from r3agent.store.labels import label_files
from r3agent.store.shards import Unreadable, shards, store_at
from r3agent.store.trajectories import load

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


class _Rates:
    """Passed and judged tries of each task."""

    def __init__(self) -> None:
        self.tasks: dict[str, list[int]] = {}

    def add(self, task: str, passed: bool | None) -> None:
        if passed is not None:
            counts = self.tasks.setdefault(task, [0, 0])
            counts[0] += passed
            counts[1] += 1

    def rate(self) -> Rate | None:
        counts_N = self.tasks.values()
        return rate([k / n for k, n in counts_N], sum(n for _, n in counts_N)) if counts_N else None


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
    found = _count(load(store, unreadable=unreadable))
    size = sum(path.stat().st_size for path in files)
    return DataStats(directory=str(store), files=len(files), bytes=size, unreadable=len(unreadable), **found)


def _count(trajectories: Iterable[Trajectory]) -> dict[str, Any]:
    trajectories = list(trajectories)
    tally = Tally()
    labels: Counter[CreditLabel] = Counter()
    outcomes: Counter[str] = Counter()
    tasks: set[str] = set()
    n_branches = n_prompt = 0
    rates = {"first_try": _Rates(), "retry_after_reflection": _Rates(), "retry_blind": _Rates()}
    shares: dict[str, dict[str, _Share]] = {"versions": {}, "splits": {}, "sources": {}}
    origin, source = origins(trajectories), {t.trajectory_id: t.metadata.get(SOURCE) for t in trajectories}
    for trajectory in trajectories:
        tally.add(trajectory)
        id_, task = trajectory.trajectory_id, trajectory.task.digest
        tasks.add(task)
        n_branches += trajectory.parent_id is not None
        n_prompt += sum(span.prompt_tokens or 0 for span in trajectory.sampled)
        labels.update(credit_label(trajectory, s) for s in trajectory.sampled if not trajectory.is_step(s))
        outcomes[_outcome(trajectory)] += 1
        keys = {
            "versions": next(iter(trajectory.policy_versions), None),
            "splits": trajectory.metadata.get(SPLIT),
            "sources": source[id_] or source.get(origin[id_]),
        }
        own = [shares[by].setdefault(str(key or UNKNOWN), _Share()) for by, key in keys.items()]
        for share in own:
            share.episodes += 1
            share.tokens += sum(span.completion_tokens or 0 for span in trajectory.sampled)
        if trajectory.error is not None:
            continue
        if trajectory.attempt and not trajectory.recorded:
            passed = trajectory.try_of(trajectory.attempt).passed
            for counts in [rates["first_try"], *(share.first for share in own)]:
                counts.add(task, passed)
        for a_try in trajectory.tries:
            if a_try.is_blind:
                rates["retry_blind"].add(task, a_try.passed)
            elif a_try.label == "retry" and is_even_sample(trajectory, a_try):
                rates["retry_after_reflection"].add(task, a_try.passed)
    attempts = [group for group in groups(trajectories, "attempt") if len(group.spans_G) > 1]
    return {
        "episodes": tally.episodes,
        "branches": n_branches,
        "tasks": len(tasks),
        "labels": dict(labels),
        "outcomes": dict(outcomes),
        "capabilities": tally.summary().capabilities,
        "tokens_prompt": n_prompt,
        "tokens_sampled": tally.tokens_sampled,
        "groups": tally.groups,
        "groups_with_variance": tally.groups_with_variance,
        "attempt_groups": len(attempts),
        "attempt_groups_with_variance": sum(group.has_variance for group in attempts),
        "pass_rates": {kind: found for kind, counts in rates.items() if (found := counts.rate())},
        **{by: {key: share.share() for key, share in sorted(keyed.items())} for by, keyed in shares.items()},
    }


def _outcome(trajectory: Trajectory) -> str:
    if trajectory.error is not None:
        return "errored"
    return {True: "passed", False: "failed", None: "unlabelled"}[trajectory.passed]
