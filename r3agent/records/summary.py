"""Summary statistics of a collection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from r3agent.records.credit import groups
from r3agent.records.trajectory import Record, Trajectory, mean_success


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
    """Share of first attempts that passed."""
    retry_after_reflection: float | None
    """Share of retries after a reflection that passed."""
    retry_blind: float | None
    """Share of blind retries that passed."""
    noisy_verdicts: int
    """Verdicts of a verifier that can be wrong, such as an LLM judge; with them the three shares are estimates."""
    tries: int = 0
    """Attempts and retries."""
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
    capabilities: dict[str, int]
    """Number of spans by capability."""
    notes: dict[str, int]
    """Number of spans by their `capability_note`."""
    seconds: float


def summarise(
    episodes: Sequence[Trajectory], *, resumed: int = 0, outdated: int = 0, seconds: float = 0.0
) -> CollectSummary:
    """Summarise trajectories."""
    whole = [t for t in episodes if t.error is None]
    spans = [s for t in episodes for s in t.spans]
    tries = [a_try for t in episodes for a_try in t.tries]
    retries = [a_try for t in whole for a_try in t.tries if a_try.label == "retry"]
    reflections = list(groups(whole))
    return CollectSummary(
        episodes=len(episodes),
        resumed=resumed,
        outdated=outdated,
        errors=dict(Counter(t.error.kind for t in episodes if t.error)),
        unlabelled=sum(all(s.verdict is None for s in t.spans) for t in whole),
        first_try=mean_success(t.try_of(t.attempt) for t in whole if t.attempt),
        retry_after_reflection=mean_success(retry for retry in retries if not retry.is_blind),
        retry_blind=mean_success(retry for retry in retries if retry.is_blind),
        noisy_verdicts=sum(s.verdict is not None and s.verdict.noisy for s in spans),
        tries=len(tries),
        steps_per_try=sum(len(a_try.steps) for a_try in tries) / len(tries) if tries else None,
        try_errors=dict(Counter(a_try.error.kind for a_try in tries if a_try.error)),
        unfinished=dict(Counter(a_try.unfinished for a_try in tries if a_try.unfinished)),
        unfinished_reflections=dict(Counter(s.unfinished for s in spans if s.label == "reflect" and s.unfinished)),
        groups=len(reflections),
        groups_with_variance=sum(group.has_variance for group in reflections),
        mixed_versions=sum(len(t.policy_versions) > 1 for t in episodes),
        tokens_sampled=sum(s.completion_tokens or 0 for s in spans),
        capabilities=dict(Counter(s.capability for s in spans)),
        notes=dict(Counter(s.capability_note for s in spans if s.capability_note)),
        seconds=round(seconds, 2),
    )
