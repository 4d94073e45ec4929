"""Statistics of the episodes of a run, by round and by what they were sampled for, without keeping any."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from statistics import fmean, quantiles
from typing import Any

from r3agent.evaluate.statistics import Rate, rate
from r3agent.records.cost import Prices
from r3agent.records.summary import Tally, is_even_sample
from r3agent.records.trajectory import SOURCE, Trajectory
from r3agent.records.usage import usage_of
from r3agent.run.rounds import ROUND_SAMPLES

TRAINING = "trajectories"
"""Name of the store of the episodes for training."""

KINDS = ("first_try", "after_reflection", "blind_retry")


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


class _Round:
    """Episodes for training of one round and one version."""

    def __init__(self) -> None:
        self.tally = Tally()
        self.rates = {kind: _Rates() for kind in KINDS}
        self.lengths: list[int] = []

    def add(self, trajectory: Trajectory) -> None:
        self.tally.add(trajectory)
        task, recorded = trajectory.task.id, trajectory.recorded
        self.lengths += [
            s.completion_tokens for s in trajectory.sampled if s.label == "reflect" and s.completion_tokens
        ]
        if trajectory.error is not None:
            return
        if trajectory.attempt and not recorded:
            self.rates["first_try"].add(task, trajectory.try_of(trajectory.attempt).passed)
        for a_try in trajectory.tries:
            if a_try.first.span_id in recorded:
                continue
            if a_try.is_blind:
                self.rates["blind_retry"].add(task, a_try.passed)
            elif a_try.label == "retry" and is_even_sample(trajectory, a_try):
                self.rates["after_reflection"].add(task, a_try.passed)


class _Spending:
    """Tokens and cost of the episodes of one store and version."""

    def __init__(self) -> None:
        self.episodes = self.passed = self.prompt = self.sampled = 0
        self.cost: float | None = 0.0

    def add(self, trajectory: Trajectory, prices: Prices | None) -> None:
        spans = trajectory.sampled
        self.episodes += 1
        self.passed += trajectory.passed is True
        used = usage_of(spans)
        self.prompt += used.prompt
        self.sampled += used.sampled
        cost = prices.cost(spans) if prices else None
        self.cost = None if self.cost is None or cost is None else self.cost + cost


class Statistics:
    """Running statistics of a run.

    Args:
        prices: prices of tokens, if they are known.
    """

    def __init__(self, prices: Prices | None) -> None:
        self.episodes = 0
        self.sources: set[str] = set()
        self.verifiers: set[str] = set()
        self.last_at: dict[tuple[str, str], str] = {}
        """Time of the last episode, by store and version."""
        self._prices = prices
        self._rounds: defaultdict[tuple[int, str], _Round] = defaultdict(_Round)
        self._spending: defaultdict[tuple[str, str], _Spending] = defaultdict(_Spending)
        self._failures: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def add(self, store: str, trajectory: Trajectory) -> None:
        """Count a trajectory of a store."""
        version = next(filter(None, trajectory.policy_versions), "unknown")
        self.episodes += 1
        self.sources.add(str(trajectory.metadata.get(SOURCE, "")))
        self.verifiers.add(trajectory.verifier)
        key = store, version
        self.last_at[key] = max(self.last_at.get(key, ""), trajectory.created_at)
        self._spending[key].add(trajectory, self._prices)
        self._failures[version].update(_outcomes(trajectory))
        if "/" not in store:
            self._rounds[trajectory.sample // ROUND_SAMPLES + 1, version].add(trajectory)

    def rounds(self) -> list[dict[str, Any]]:
        """Return the rounds of collection, in order."""
        return [
            {
                "round": number,
                "version": version,
                "episodes": found.tally.episodes,
                "groups": found.tally.groups,
                "groups_with_variance": found.tally.groups_with_variance,
                "rates": {
                    kind: value.model_dump() for kind in KINDS if (value := found.rates[kind].rate()) is not None
                },
                "reflection_tokens": _spread(found.lengths),
            }
            for (number, version), found in sorted(self._rounds.items())
        ]

    def spending(self) -> list[dict[str, Any]]:
        """Return the tokens and the cost of each store and version."""
        return [
            {"store": store, "version": version, **vars(spent)} for (store, version), spent in self._spending.items()
        ]

    def failures(self) -> dict[str, dict[str, int]]:
        """Return the outcomes of tries and the errors of episodes, by version."""
        return {version: dict(counts.most_common()) for version, counts in sorted(self._failures.items())}


def _outcomes(trajectory: Trajectory) -> Iterable[str]:
    """Yield the outcome of each try, and the error that ended the episode."""
    for a_try in trajectory.tries:
        if a_try.first.span_id in trajectory.recorded:
            continue
        verdict = a_try.verdict
        if a_try.error is not None:
            yield f"error: {a_try.error.kind}"
        elif a_try.unfinished:
            yield f"no whole answer: {a_try.unfinished}"
        elif verdict is None:
            yield "no verdict"
        elif verdict.passed:
            yield "passed"
        else:
            yield "wrong answer" if verdict.readable else "no readable answer"
    if trajectory.error is not None:
        yield f"episode error: {trajectory.error.kind}"


def _spread(lengths: list[int]) -> dict[str, float] | None:
    if not lengths:
        return None
    tenths = quantiles(lengths, n=10) if len(lengths) > 1 else lengths * 9
    return {"mean": round(fmean(lengths), 2), "p10": tenths[0], "p50": tenths[4], "p90": tenths[8], "n": len(lengths)}
