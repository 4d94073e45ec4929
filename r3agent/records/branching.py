"""Branch of a recorded episode: its beginning, its origin, and whether it was rendered as it was recorded."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import Any, Literal, TypeAlias

from r3agent.errors import ArgumentError
from r3agent.records.record import new_id
from r3agent.records.trajectory import AT_ONCE, CONTROL, EPISODE, RECORDED, SOURCE, Span, Trajectory, Try

Rendering: TypeAlias = Literal["same", "prompt_differs", "answer_differs", "unknown"]
"""Comparison of a reflection's prompt ids with the ids of the recorded try.

`prompt_differs`: they do not begin with the ids of the recorded prompt, so another template or tokenizer rendered it;
`answer_differs`: they do, but the answer is rendered to other ids than were sampled, e.g. without its thinking;
`unknown`: the ids of one of them were not recorded, or the server took the conversation in another form.
"""


Control: TypeAlias = Literal["generic", "donor"]
"""Reflection of a control branch: one fixed text, or the reflection on another task."""

WORDS = ("text", "reasoning", "reasoning_field", "tool_calls", "extra")
"""Fields of a span that its message is made of."""

DONOR = "donor"
"""Metadata key of a control branch: id of the trajectory that its reflection is from."""

MADE_WITH = ("agent", "ended", "params", "prompts", "settings", "verifier", "verifier_params")
"""Metadata keys that say with which settings an episode was made, and how it ended."""

OWN = (*MADE_WITH, AT_ONCE, CONTROL, DONOR, EPISODE, SOURCE)
"""Metadata keys that say how an episode was made, and that its branches have of their own, if any."""


def branch_of(trajectory: Trajectory, span_id: str | None = None, *, trajectory_id: str | None = None) -> Trajectory:
    """Return the beginning of a branch: the spans of a try, and those that it continues.

    Pass it to `graph.invoke` as `context={"begin": ...}`: the episode goes on from there, instead of with a first try.

    Args:
        span_id: last span of the try; default: that of the first try.
        trajectory_id: id of the branch; default: a random one.

    Raises:
        ArgumentError: the trajectory has no such try.
    """
    last = next((t.last for t in trajectory.tries if span_id in (None, t.last.span_id)), None)
    if last is None:
        which = "no try" if span_id is None else f"no try that ends with span {span_id!r}"
        raise ArgumentError(f"trajectory {trajectory.trajectory_id} has {which}, to branch off")
    path = trajectory.path(last)
    steps = (step for span in path if span.label != "reflect" for step in trajectory.try_of(span).steps)
    ids = {span.span_id for span in (*path, *steps)}
    spans = tuple(span for span in trajectory.spans if span.span_id in ids)
    own = {name: value for name, value in trajectory.metadata.items() if name not in OWN}
    return Trajectory(
        trajectory_id=trajectory_id or new_id(),
        parent_id=trajectory.trajectory_id,
        task=trajectory.task,
        spans=spans,
        metadata={**own, RECORDED: [span.span_id for span in spans]},
    )


def control_of(
    trajectory: Trajectory, control: Control, reflection: Span | str, *, donor: str | None = None
) -> Trajectory:
    """Return the beginning of a control branch: the failed first try, and a reflection that was not written for it.

    The reflection stands where the first of the policy's own does, after the same prompt. Its `purpose` says that the
    policy did not write it here, so that nothing counts or trains it.

    Args:
        reflection: a fixed text, or the reflection on another task.
        donor: id of the trajectory that a reflection is from.

    Raises:
        ArgumentError: the first try did not fail, or has no reflection to replace.
    """
    attempt = trajectory.attempt
    own = None if attempt is None or attempt.passed else next(iter(trajectory.children(attempt, "reflect")), None)
    if attempt is None or own is None:
        raise ArgumentError(
            f"trajectory {trajectory.trajectory_id} has no reflection on a failed first try, which a control replaces"
        )
    begin = branch_of(trajectory, attempt.span_id)
    words: dict[str, Any] = {"text": reflection}
    if isinstance(reflection, Span):
        words = {name: getattr(reflection, name) for name in WORDS}
    key = repr([control, attempt.span_id, own.request, words])
    given = Span(
        span_id=sha256(key.encode()).hexdigest()[:16],
        parent_id=attempt.span_id,
        label="reflect",
        request=own.request,
        standalone=own.standalone,
        model=own.model,
        policy_version=own.policy_version,
        prompt_tokens=0,
        completion_tokens=0,
        capability_note="not sampled: the reflection of a control",
        purpose=f"{control} reflection",
        **words,
    )
    source = {} if donor is None else {DONOR: donor}
    metadata = {**begin.metadata, CONTROL: control, **source, RECORDED: [*begin.recorded, given.span_id]}
    return begin.changed(spans=(*begin.spans, given), metadata=metadata)


def recorded_try(branch: Trajectory) -> Try:
    """Return the try that a branch begins with."""
    return branch.try_of([s for s in branch.spans if s.span_id in branch.recorded and s.label != "reflect"][-1])


def n_tries(trajectory: Trajectory, span: Span) -> int:
    """Count the tries on the path to a span."""
    return len({trajectory.try_of(s).first.span_id for s in trajectory.path(span) if s.label != "reflect"})


def rendering(trajectory: Trajectory) -> Rendering | None:
    """Compare the prompt of a branch's first child with the recorded try; `None` if it is no branch or has no child."""
    if not trajectory.recorded or trajectory.control is not None:
        return None
    last = recorded_try(trajectory).last
    answered = next((child for child in trajectory.children(last) if not child.refused), None)
    return answered and _compare(last, answered)


def _compare(recorded: Span, child: Span) -> Rendering:
    before, answer, prompt = recorded.prompt_token_ids, recorded.token_ids, child.prompt_token_ids
    if before is None or answer is None or prompt is None or child.standalone:
        return "unknown"
    if prompt[: len(before)] != before:
        return "prompt_differs"
    return "same" if prompt[len(before) : len(before) + len(answer)] == answer else "answer_differs"


def origins(trajectories: Iterable[Trajectory]) -> dict[str, str]:
    """Map the id of each trajectory to that of the one that it, or its parent and so on, branched off; else to its own.

    Parents come before their branches, as they were recorded.
    """
    found: dict[str, str] = {}
    for trajectory in trajectories:
        parent_id = trajectory.parent_id
        found[trajectory.trajectory_id] = (
            trajectory.trajectory_id if parent_id is None else found.get(parent_id, parent_id)
        )
    return found
