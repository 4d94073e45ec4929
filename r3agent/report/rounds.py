"""Statistics of the episodes of a run, by round and by what they were sampled for, without keeping any."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from statistics import fmean, quantiles
from typing import Any, TypeAlias

from r3agent.evaluate.statistics import rate
from r3agent.records.cost import Prices
from r3agent.records.summary import Tally, TryKind, judged_tries
from r3agent.records.trajectory import SOURCE, Trajectory
from r3agent.records.usage import usage_of
from r3agent.run.rounds import ROUND_SAMPLES

TRAINING = "trajectories"
"""Name of the store of the episodes for training."""

KINDS: dict[tuple[TryKind, bool], str] = {
    ("first_try", False): "first_try",
    ("retry_after_reflection", False): "after_reflection",
    ("retry_blind", False): "blind_retry",
    ("first_try", True): "branch_first_try",
    ("retry_after_reflection", True): "branch_after_reflection",
    ("retry_blind", True): "branch_blind_retry",
}
"""Names of the kinds of tries on the page, of episodes and of branches."""

Key: TypeAlias = tuple[Hashable, ...]


class Statistics:
    """Running statistics of a run, as counts to which each task adds.

    Args:
        prices: prices of tokens, if they are known.
        keep: keep the counts of each task, so that it can be put again when more of it is stored.
    """

    def __init__(self, prices: Prices | None, *, keep: bool = False) -> None:
        self.sources: set[str] = set()
        self.verifiers: set[str] = set()
        self.last_at: dict[tuple[str, str], str] = {}
        """Time of the last episode, by store and version."""
        self._prices = prices
        self._counts: Counter[Key] = Counter()
        self._of_task: dict[tuple[str, str], Counter[Key]] | None = {} if keep else None
        self._keys: dict[Key, Key] = {}
        """Keys, which the counts of all tasks share."""
        self._rates: defaultdict[tuple[int, str, str], dict[str, tuple[int, int]]] = defaultdict(dict)
        """Passed and judged tries of each task, by round, version and kind of try."""

    @property
    def episodes(self) -> int:
        return sum(int(n) for key, n in self._counts.items() if key[0] == "spent" and key[3] == "episodes")

    def put(self, store: str, task: str, trajectories: Iterable[Trajectory]) -> None:
        """Count all trajectories of a task of a store, in place of what was counted of it."""
        counts, tallies = Counter[Key](), defaultdict[tuple[int, str], Tally](Tally)
        if is_training := "/" not in store:
            for tried in self._rates.values():
                tried.pop(task, None)
        for trajectory in trajectories:
            version = next(filter(None, trajectory.policy_versions), "unknown")
            self.sources.add(str(trajectory.metadata.get(SOURCE, "")))
            self.verifiers.add(trajectory.verifier)
            self.last_at[store, version] = max(self.last_at.get((store, version), ""), trajectory.created_at)
            for field, value in _spending(trajectory, self._prices).items():
                counts["spent", store, version, field] += value  # pyright: ignore[reportArgumentType]
            counts.update(("outcome", version, outcome) for outcome in _outcomes(trajectory))
            if is_training:
                number = trajectory.sample // ROUND_SAMPLES + 1
                tallies[number, version].add(trajectory)
                counts.update(("length", number, version, tokens) for tokens in _lengths(trajectory))
                for kind, passed in judged_tries(trajectory):
                    tried = self._rates[number, version, KINDS[kind, trajectory.parent_id is not None]]
                    before = tried.get(task, (0, 0))
                    tried[task] = before[0] + passed, before[1] + 1
        for place, tally in tallies.items():
            for field in ("episodes", "groups", "groups_with_variance"):
                counts["round", *place, field] = getattr(tally, field)
        self._counts.update(counts)
        if self._of_task is not None:
            self._counts.subtract(self._of_task.get((store, task), {}))
            self._of_task[store, task] = Counter({self._keys.setdefault(key, key): n for key, n in counts.items()})

    def rounds(self) -> list[dict[str, Any]]:
        """Return the rounds of collection, in order."""
        found, lengths = self._by_place("round"), defaultdict[Key, Counter[Any]](Counter)
        for (kind, *place), n in self._counts.items():
            if kind == "length" and n > 0:
                lengths[tuple(place[:2])][place[2]] = n
        rates = {key: _rate([*tried.values()]) for key, tried in self._rates.items() if tried}
        return [
            {
                "round": number,
                "version": version,
                **fields,
                "rates": {kind: r for kind in KINDS.values() if (r := rates.get((number, version, kind)))},
                "reflection_tokens": _spread([*lengths[number, version].elements()]),
            }
            for (number, version), fields in sorted(found.items())
            if fields["episodes"]
        ]

    def spending(self) -> list[dict[str, Any]]:
        """Return the tokens and the cost of each store and version."""
        found: list[dict[str, Any]] = []
        for (store, version), fields in self._by_place("spent").items():
            unpriced = fields.pop("unpriced")
            cost = None if unpriced else fields["cost"]
            found += [{"store": store, "version": version, **fields, "cost": cost}] if fields["episodes"] else []
        return found

    def failures(self) -> dict[str, dict[str, int]]:
        """Return the outcomes of tries and the errors of episodes, by version."""
        found: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for (kind, version, *rest), n in self._counts.items():
            if kind == "outcome" and n > 0:
                found[str(version)][str(rest[0])] = n
        return {version: dict(counts.most_common()) for version, counts in sorted(found.items())}

    def _by_place(self, kind: str) -> dict[Any, dict[str, Any]]:
        """Return the counts of a kind, by their place and field."""
        found: defaultdict[Any, dict[str, Any]] = defaultdict(dict)
        for (name, *place), n in self._counts.items():
            if name == kind:
                found[tuple(place[:2])][str(place[2])] = n
        return found


def _spending(trajectory: Trajectory, prices: Prices | None) -> dict[str, float]:
    spans = trajectory.sampled
    used = usage_of(spans)
    cost = prices.cost(spans) if prices else None
    return {
        "episodes": 1,
        "passed": trajectory.passed is True,
        "prompt": used.prompt,
        "sampled": used.sampled,
        "cost": cost or 0.0,
        "unpriced": cost is None,
    }


def _lengths(trajectory: Trajectory) -> list[int]:
    """List the tokens of the reflections."""
    return [s.completion_tokens for s in trajectory.sampled if s.label == "reflect" and s.completion_tokens]


def _rate(counts_N: Sequence[tuple[int, int]]) -> dict[str, Any]:
    return rate([k / n for k, n in counts_N], sum(n for _, n in counts_N)).model_dump()


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
