"""Blind control at equal tokens: as many blind retries as the tokens of a reflection and its retry would buy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil, comb, floor
from statistics import fmean

from r3agent.records.trajectory import Record, Span, Trajectory, Try


class EqualTokens(Record):
    """Sampled tokens that reflecting costs after a failed first try, against a blind retry. Prompts are not counted."""

    reflecting: float
    """Mean number of tokens sampled for a reflection and a retry after it."""
    blind_retry: float
    """Mean number of tokens sampled for one blind retry."""
    recorded: int
    """Number of blind retries that every failed first try has."""

    @property
    def retries(self) -> float:
        """Number of blind retries that the tokens of reflecting would buy."""
        return self.reflecting / self.blind_retry

    @property
    def enough(self) -> bool:
        """True if enough blind retries are recorded to estimate the success of that many."""
        return self.retries <= self.recorded


def equal_tokens(trajectories: Iterable[Trajectory]) -> EqualTokens | None:
    """Compute what reflecting costs; `None` without both kinds of retry, or if the endpoint counted no tokens."""
    failed = [(t, t.attempt) for t in trajectories if t.attempt is not None and t.try_of(t.attempt).passed is False]
    reflections = [span for t, attempt in failed for span in t.children(attempt, "reflect")]
    retries = [a_try for t, _ in failed for a_try in t.tries if a_try.label == "retry" and not a_try.is_blind]
    blind = [t.retries(attempt) for t, attempt in failed]
    means = [_mean_tokens(spans) for spans in (reflections, retries, [a_try for tries in blind for a_try in tries])]
    reflecting, retrying, blindly = means
    if reflecting is None or retrying is None or not blindly:
        return None
    return EqualTokens(
        reflecting=reflecting + retrying, blind_retry=blindly, recorded=min(len(_verdicts(tries)) for tries in blind)
    )


def success_of(retries: Sequence[Try], m: float) -> float | None:
    """Estimate without bias the chance that at least one of `m` retries passes; `None` with fewer than `m` verdicts.

    A fraction of `m` is the chance of one more retry. Source of the estimate for whole numbers: M. Chen et al.,
    Evaluating Large Language Models Trained on Code, 2021 (pass@k).
    """
    verdicts = _verdicts(retries)
    n, failed = len(verdicts), verdicts.count(False)
    if m > n:
        return None
    fewer, more = (1 - comb(failed, whole) / comb(n, whole) for whole in (floor(m), ceil(m)))
    return fewer + (m - floor(m)) * (more - fewer)


def _verdicts(tries: Sequence[Try]) -> list[bool]:
    return [a_try.passed for a_try in tries if a_try.passed is not None]


def _mean_tokens(spans: Sequence[Span | Try]) -> float | None:
    counts = [span.completion_tokens for span in spans if span.completion_tokens is not None]
    return fmean(counts) if counts else None
