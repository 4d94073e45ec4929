"""Branch of a recorded episode: its beginning, and whether its conversation was rendered as it was recorded."""

from __future__ import annotations

from typing import Literal, TypeAlias

from r3agent.errors import ArgumentError
from r3agent.records.record import new_id
from r3agent.records.trajectory import RECORDED, Span, Trajectory, Try

Rendering: TypeAlias = Literal["same", "prompt_differs", "answer_differs", "unknown"]
"""Comparison of a reflection's prompt ids with the ids of the recorded try.

`prompt_differs`: they do not begin with the ids of the recorded prompt, so another template or tokenizer rendered it;
`answer_differs`: they do, but the answer is rendered to other ids than were sampled, e.g. without its thinking;
`unknown`: the ids of one of them were not recorded, or the server took the conversation in another form.
"""


def failed_try(trajectory: Trajectory) -> Try:
    """Return the first try of an episode.

    Raises:
        ArgumentError: it has none.
    """
    if (last := trajectory.attempt) is None:
        raise ArgumentError(f"trajectory {trajectory.trajectory_id} has no first try that could be branched off")
    return trajectory.try_of(last)


def branch_of(trajectory: Trajectory, trajectory_id: str | None = None) -> Trajectory:
    """Return the beginning of a branch: the spans of the first try, and those that they continue.

    Pass it to `graph.invoke` as `context={"begin": ...}`: the episode goes on from there, instead of with a first try.

    Args:
        trajectory_id: id of the branch; default: a random one.

    Raises:
        ArgumentError: the trajectory has no first try.
    """
    first = failed_try(trajectory)
    ids = {span.span_id for span in (*trajectory.path(first.last), *first.steps)}
    spans = tuple(span for span in trajectory.spans if span.span_id in ids)
    return Trajectory(
        trajectory_id=trajectory_id or new_id(),
        parent_id=trajectory.trajectory_id,
        task=trajectory.task,
        spans=spans,
        metadata={RECORDED: [span.span_id for span in spans]},
    )


def rendering(trajectory: Trajectory) -> Rendering | None:
    """Compare the prompt of a branch's first child with the recorded try; `None` if it is no branch or has no child."""
    if not trajectory.recorded or trajectory.attempt is None:
        return None
    children = [child for child in trajectory.children(trajectory.attempt) if child in trajectory.sampled]
    answered = next((child for child in children if not child.refused), None)
    return answered and _compare(trajectory.attempt, answered)


def _compare(recorded: Span, child: Span) -> Rendering:
    before, answer, prompt = recorded.prompt_token_ids, recorded.token_ids, child.prompt_token_ids
    if before is None or answer is None or prompt is None or child.standalone:
        return "unknown"
    if prompt[: len(before)] != before:
        return "prompt_differs"
    return "same" if prompt[len(before) : len(before) + len(answer)] == answer else "answer_differs"
