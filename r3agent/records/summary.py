"""Summary of a collection, in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from r3agent.records.credit import groups
from r3agent.records.trajectory import Record, Trajectory, mean_success


class CollectSummary(Record):
    """Counted over the episodes of one call and those it found done."""

    episodes: int
    resumed: int
    """Episodes among these that an earlier call stored."""
    errors: dict[str, int]
    """Episodes that ended with an error, by its kind; they count nowhere below but in the spans they grew."""
    unlabelled: int
    """Whole episodes without a single verdict: nobody has said yet how they went."""
    first_try: float | None
    """Share of first attempts that passed."""
    retry_after_reflection: float | None
    """Share of retries after a reflection that passed."""
    retry_blind: float | None
    """Share of blind retries that passed."""
    noisy_verdicts: int
    """Verdicts of whoever may err, such as an LLM judge: the three shares are then estimates of what is right."""
    groups: int
    """Failed tries with reflections."""
    groups_with_variance: int
    """Groups among these that GRPO can learn from: not all reflections earned the same."""
    mixed_versions: int
    """Episodes that lived through a deploy: more than one policy version answered in them."""
    tokens_sampled: int
    capabilities: dict[str, int]
    """Spans by what they are good for."""
    notes: dict[str, int]
    """Reasons that spans are less than trainable-exact, counted."""
    seconds: float


def summarise(episodes: Sequence[Trajectory], *, resumed: int = 0, seconds: float = 0.0) -> CollectSummary:
    """Count what trajectories hold."""
    whole = [t for t in episodes if t.error is None]
    spans = [s for t in episodes for s in t.spans]
    retries = [(t.is_blind(s), s) for t in whole for s in t.spans if s.label == "retry"]
    reflections = list(groups(whole))
    return CollectSummary(
        episodes=len(episodes),
        resumed=resumed,
        errors=dict(Counter(t.error.kind for t in episodes if t.error)),
        unlabelled=sum(all(s.verdict is None for s in t.spans) for t in whole),
        first_try=mean_success(t.attempt for t in whole if t.attempt),
        retry_after_reflection=mean_success(s for blind, s in retries if not blind),
        retry_blind=mean_success(s for blind, s in retries if blind),
        noisy_verdicts=sum(s.verdict is not None and s.verdict.noisy for s in spans),
        groups=len(reflections),
        groups_with_variance=sum(group.has_variance for group in reflections),
        mixed_versions=sum(len(t.policy_versions) > 1 for t in episodes),
        tokens_sampled=sum(s.completion_tokens or 0 for s in spans),
        capabilities=dict(Counter(s.capability for s in spans)),
        notes=dict(Counter(s.capability_note for s in spans if s.capability_note)),
        seconds=round(seconds, 2),
    )
