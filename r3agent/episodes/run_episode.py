"""One episode from its task to its record."""

from __future__ import annotations

from typing import Any, NamedTuple

from langgraph.graph.state import CompiledStateGraph

from r3agent._util.within import OverrunError, within
from r3agent.episodes.config import EpisodeContext
from r3agent.errors import AgentError, EpisodeTimeoutError, R3Error, VerifierError
from r3agent.policy import Policy
from r3agent.records.trajectory import EpisodeError, Span, Task, Trajectory, new_id
from r3agent.telemetry import genai

GRACE_S = 10.0
"""Time for an episode to end after it was cancelled: for its agent, and then its world."""


class Ended(NamedTuple):
    """End of an episode."""

    episode: Trajectory
    cause: R3Error | None
    """Error that ended it; the episode has its text."""


async def run_episode(
    graph: CompiledStateGraph[Any, Any, Any, Any],
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
        policy: policy to ask in place of the graph's.
        trajectory_id: id of the record; default: another one.
        agent: name of the agent, for telemetry.
        limits: fields of `EpisodeContext`, for this episode.
    """
    state: dict[str, Any] = {}
    cause: R3Error | None = None

    async def follow() -> None:
        nonlocal state
        given = {"task": task.model_dump(mode="json")}
        context = EpisodeContext(sample=sample, policy=policy, begin=begin, **limits)
        async for reached in graph.astream(given, stream_mode="values", context=context):
            state = reached

    named: Any = {"trajectory_id": trajectory_id or new_id(), "parent_id": begin and begin.parent_id}
    with genai.episode(task, agent=agent, sample=sample, **named) as span:
        try:
            await within(timeout_s, follow(), name=f"the episode of task {task.id!r}", grace_s=GRACE_S)
            if "trajectory" not in state:
                kind = VerifierError if state.get("spans") else AgentError
                asker = "the verifier" if state.get("spans") else "the agent or a tool"
                raise kind(f"{asker} interrupted the graph to ask a person; a collection cannot wait for an answer")
        except R3Error as raised:
            cause = raised
        except OverrunError:
            limit = f"episode_timeout_s = {timeout_s:g}"
            cause = EpisodeTimeoutError(f"it took longer than {limit}; raise it or ask for less")
        if cause is not None:
            span.fail(cause)
        span.set(lambda: {"r3agent.passed": state.get("passed")})
    error: Any = state.get("trajectory", {}).get("error")  # of the first try
    if cause is not None:
        error = EpisodeError(kind=type(cause).__name__, message=str(cause))
    tools = tuple(state.get("task", {}).get("tools", task.tools))
    if tools != task.tools:  # an agent brings its own; the state has lost what no JSON holds
        task = task.model_copy(update={"tools": tools})
    spans = tuple(Span.model_validate(span) for span in state.get("spans", ()))
    metadata = state.get("trajectory", {}).get("metadata", {})
    given: Any = {**named, "sample": sample, "error": error, "metadata": metadata}
    return Ended(Trajectory(task=task, spans=spans, **given), cause)
