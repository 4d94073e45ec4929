"""One episode from its task to its record."""

from __future__ import annotations

from typing import Any, NamedTuple

from r3agent._util.within import OverrunError, within
from r3agent.episodes.config import EpisodeContext
from r3agent.episodes.course import Course
from r3agent.episodes.nodes import Nodes
from r3agent.episodes.without_thread import run_nodes
from r3agent.errors import EpisodeTimeoutError, R3Error
from r3agent.policy import Policy
from r3agent.records.trajectory import EpisodeError, Task, Trajectory, new_id
from r3agent.telemetry import genai

GRACE_S = 10.0
"""Time for an episode to end after it was cancelled: for its agent, and then its world."""


class Ended(NamedTuple):
    """End of an episode."""

    episode: Trajectory
    cause: R3Error | None
    """Error that ended it; the episode has its text."""


async def run_episode(
    nodes: Nodes,
    task: Task,
    sample: int = 0,
    *,
    begin: Trajectory | None = None,
    timeout_s: float | None = None,
    policy: Policy | None = None,
    trajectory_id: str | None = None,
    agent: str = "",
    **limits: int,
) -> Ended:
    """Run one episode; record an error with the spans sampled before it.

    Args:
        begin: recorded failure to begin with.
        timeout_s: time limit; an episode that takes longer ends with an error.
        policy: policy to ask in place of the nodes' own.
        trajectory_id: id of the record; default: another one.
        agent: name of the agent, for telemetry.
        limits: fields of `EpisodeContext`, for this episode.
    """
    course = Course(tree=Trajectory(task=task))
    cause: R3Error | None = None

    def reach(reached: Course) -> None:
        nonlocal course
        course = reached

    async def follow() -> None:
        context = EpisodeContext(sample=sample, policy=policy, begin=begin, **limits)
        await run_nodes(nodes.under(context), task, reach)

    named: Any = {"trajectory_id": trajectory_id or new_id(), "parent_id": begin and begin.parent_id}
    with genai.episode(task, agent=agent, sample=sample, **named) as span:
        try:
            await within(timeout_s, follow, name=f"the episode of task {task.id!r}", grace_s=GRACE_S)
        except R3Error as raised:
            cause = raised
        except OverrunError:
            limit = f"episode_timeout_s = {timeout_s:g}"
            cause = EpisodeTimeoutError(f"it took longer than {limit}; raise it or ask for less")
        if cause is not None:
            span.fail(cause)
        tree = course.tree
        span.set(lambda: {"r3agent.passed": tree.passed if tree.spans else None})
    error = tree.error if cause is None else EpisodeError(kind=type(cause).__name__, message=str(cause))
    if tree.task.tools != task.tools:  # an agent brings its own
        task = task.model_copy(update={"tools": tree.task.tools})
    metadata = tree.metadata if course.ended else {}
    given: Any = {**named, "sample": sample, "error": error, "metadata": metadata}
    return Ended(Trajectory(task=task, spans=tree.spans, **given), cause)
