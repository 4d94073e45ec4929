"""Episodes with given outcomes."""

from __future__ import annotations

from r3agent.records.trajectory import EpisodeError, Span, Task, Trajectory, Verdict


def episode(
    task: str,
    first: bool,
    reflected: bool | None = False,
    blind: bool | None = False,
    *,
    version: str = "v0000",
    sample: int = 0,
    error: str | None = None,
) -> Trajectory:
    """One attempt and, if it failed, a retry after a reflection and a blind one; `None` leaves a retry out."""
    attempt = span("attempt", None, first, version)
    spans = [attempt]
    if not first and reflected is not None:
        reflection = span("reflect", attempt, None, version)
        spans += [reflection, span("retry", reflection, reflected, version)]
    if not first and blind is not None:
        spans.append(span("retry", attempt, blind, version))
    return Trajectory(
        task=Task(id=task, messages=({"role": "user", "content": task},)),
        sample=sample,
        spans=tuple(spans),
        error=EpisodeError(kind=error, message="") if error else None,
    )


def span(label: str, parent: Span | None, passed: bool | None, version: str) -> Span:
    return Span(
        text="",
        model=f"tiny@{version}",
        policy_version=version,
        label=label,
        parent_id=parent and parent.span_id,
        verdict=None if passed is None else Verdict(passed=passed, score=float(passed)),
    )
