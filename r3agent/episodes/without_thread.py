"""Episodes without a thread to resume, as `collect` runs them: the nodes of the loop, one after another.

The graph of `build_graph` keeps its state as JSON, which each node reads and writes, and notices edits: more work than
the nodes do themselves (`benchmarks/graph_overhead.py`). A collection needs none of that. An application's agents,
policies and verifiers run within LangGraph all the same, in a single node, so that their subgraphs, interrupts and
stream writers work as they do there.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypedDict

from langchain_core.runnables.config import var_child_runnable_config
from langgraph.errors import GraphInterrupt
from langgraph.graph import START, StateGraph

from r3agent._util.clock import steady_time
from r3agent.episodes.course import Course
from r3agent.episodes.nodes import Nodes
from r3agent.errors import AgentError, R3Error, VerifierError
from r3agent.records.trajectory import Task, Trajectory
from r3agent.verifiers.human import person

RECURSION_LIMIT = 10_000
"""Limit on the steps of an agent's graph, which ends by `max_steps`."""

ASKS = "interrupted the graph to ask a person; a collection cannot wait for an answer"


async def run_nodes(nodes: Nodes, task: Task, reached: Callable[[Course], None]) -> None:
    """Run an episode from its task to its end.

    Args:
        nodes: nodes under the context of the episode.
        reached: called with the course of the episode after each step.

    Raises:
        AgentError: the policy, the agent or a tool interrupted.
        VerifierError: the verifier interrupted.
        R3Error: as the nodes.
    """
    asks = AgentError(f"{'the policy' if nodes.runner is None else 'the agent or a tool'} {ASKS}")

    async def verified(course: Course) -> Course:
        return await _uninterrupted(nodes.verify(course), VerifierError(f"the verifier {ASKS}"))

    async def work() -> None:
        beginning = Course(tree=Trajectory(task=task.fresh()), began=steady_time())
        reached(course := await _uninterrupted(nodes.attempt(beginning), asks))
        reached(course := await verified(course))
        while course.frontier:
            if nodes.config.reflections:
                reached(course := await _uninterrupted(nodes.reflect(course), asks))
            reached(course := await _uninterrupted(nodes.retry(course), asks))
            reached(course := await verified(course))

    var_child_runnable_config.set(None)  # a graph that calls `collect` is none of the episode's
    if nodes.runner is None and _needs_no_graph(nodes.verifier) and _needs_no_graph(nodes.policy):
        await work()
    else:
        await _graph.ainvoke({"work": work}, {"recursion_limit": RECURSION_LIMIT})


async def _uninterrupted(step: Awaitable[Course], asks: R3Error) -> Course:
    try:
        return await step
    except GraphInterrupt:
        raise asks from None


def _needs_no_graph(part: object) -> bool:
    """Return True for a part of this library that does nothing that only works within LangGraph.

    Outside of it, an interrupt of a graph that an application's verifier calls ends that graph, and no more: the
    verifier would judge by what it had found so far.
    """
    while isinstance(part, partial):
        part = part.func
    owner = part if inspect.isroutine(part) else type(part)
    return part is not person and str(owner.__module__).partition(".")[0] == __name__.partition(".")[0]


class Work(TypedDict):
    """State of the graph."""

    work: Callable[[], Awaitable[None]]


async def episode(state: Work) -> None:
    """Run an episode as the only node."""
    await state["work"]()


_graph: Any = StateGraph(Work).add_node(episode).add_edge(START, "episode").compile(name="r3agent")
