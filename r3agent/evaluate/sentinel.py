"""Sentinel for reward hacking: signs that a version gains by other means than better answers, with examples.

The signs are reflections that give the answer away, reflections that become much longer or shorter, answers that the
task's verifier passes and a second one refuses, and first tries of other sources that are lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Literal, TypeAlias

from r3agent.evaluate.cells import Means, by_task, error_of, first_try
from r3agent.records.leak import leaks
from r3agent.records.trajectory import Record, Span, Trajectory, Try

Sign: TypeAlias = Literal["leaks", "length", "disagreement"]

Second: TypeAlias = Mapping[tuple[str, str], bool]
"""Verdicts of a second verifier, by the ids of the trajectory and of the last span of the try."""

N_EXAMPLES, EXCERPT = 3, 160


class Example(Record):
    """Episode of the candidate that shows a sign."""

    trajectory_id: str
    excerpt: str
    """Beginning of the reflection or of the answer."""


def examples(
    candidate: Iterable[Trajectory], *, longer: bool | None, second: Second
) -> dict[Sign, tuple[Example, ...]]:
    """Find the candidate's episodes that show each sign.

    Args:
        longer: reflections became longer than the baseline's, not shorter; `None` if that is not known.
    """
    whole = [t for t in candidate if error_of(t) is None]
    reflections = [(t, span) for t in whole for span in t.sampled if span.label == "reflect"]
    leaking = ((t, span) for t, span in reflections if leaks(t, span))
    by_length = sorted(reflections, key=lambda found: found[1].completion_tokens or 0, reverse=longer is True)
    refused = ((t, a_try.last) for t in whole for a_try in t.tries if _disagrees(t, a_try, second))
    found: dict[Sign, Iterable[tuple[Trajectory, Span]]]
    found = {"leaks": leaking, "length": () if longer is None else by_length, "disagreement": refused}
    return {sign: shown for sign, spans in found.items() if (shown := _shown(spans))}


def lost(baseline: Iterable[Trajectory], candidate: Iterable[Trajectory]) -> tuple[Example, ...]:
    """Find the candidate's failed first tries of tasks that the baseline passes."""
    passed = {t.task.id for t in baseline if error_of(t) is None and first_try(t)}
    failed = (t for t in candidate if error_of(t) is None and t.task.id in passed and not first_try(t))
    return _shown((t, t.try_of(t.attempt).last) for t in failed if t.attempt is not None)


def disagreement_means(episodes: Iterable[Trajectory], second: Second) -> Means:
    """Return the share of a task's answers that its verifier passes and the second one refuses, by task id."""
    whole = (t for t in episodes if error_of(t) is None)
    return by_task(
        (t.task.id, float(_disagrees(t, a_try, second)))
        for t in whole
        for a_try in t.tries
        if (t.trajectory_id, a_try.last.span_id) in second
    )


def _disagrees(trajectory: Trajectory, a_try: Try, second: Second) -> bool:
    return a_try.passed is True and second.get((trajectory.trajectory_id, a_try.last.span_id)) is False


def _shown(spans: Iterable[tuple[Trajectory, Span]]) -> tuple[Example, ...]:
    return tuple(
        Example(trajectory_id=t.trajectory_id, excerpt=_excerpt(span)) for t, span in islice(spans, N_EXAMPLES)
    )


def _excerpt(span: Span) -> str:
    text = " ".join((span.text if span.answer is None else str(span.answer)).split())
    return text if len(text) <= EXCERPT else f"{text[:EXCERPT]}…"
