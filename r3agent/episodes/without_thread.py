"""Episodes without a thread to resume, as `collect` runs them: the nodes of the loop, one after another.

The graph of `build_graph` keeps its state as JSON, which each node reads and writes, and notices edits: more work than
the nodes do themselves (`benchmarks/graph_overhead.py`). A collection needs none of that. Agents run within LangGraph
all the same, in a single node, so that their subgraphs and interrupts work as they do there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypedDict

from langchain_core.runnables.config import var_child_runnable_config
from langgraph.graph import START, StateGraph

from r3agent._util.clock import steady_time
from r3agent.episodes.course import Course
from r3agent.episodes.nodes import Nodes
from r3agent.records.trajectory import Task, Trajectory

RECURSION_LIMIT = 10_000
"""Limit on the steps of an agent's graph, which ends by `max_steps`."""


async def run_nodes(nodes: Nodes, task: Task, reached: Callable[[Course], None]) -> None:
    """Run an episode from its task to its end, or to an interrupt.

    Args:
        nodes: nodes under the context of the episode.
        reached: called with the course of the episode after each step.
    """

    async def work() -> None:
        course = await nodes.attempt(Course(tree=Trajectory(task=task.fresh()), began=steady_time()))
        reached(course)
        reached(course := await nodes.verify(course))
        while course.frontier:
            if nodes.config.reflections:
                reached(course := await nodes.reflect(course))
            reached(course := await nodes.retry(course))
            reached(course := await nodes.verify(course))

    var_child_runnable_config.set(None)  # a graph that calls `collect` is none of the episode's
    if nodes.runner is None:
        await work()
    else:
        await _graph.ainvoke({"work": work}, {"recursion_limit": RECURSION_LIMIT})


class Work(TypedDict):
    """State of the graph."""

    work: Callable[[], Awaitable[None]]


async def episode(state: Work) -> None:
    """Run an episode as the only node."""
    await state["work"]()


_graph: Any = StateGraph(Work).add_node(episode).add_edge(START, "episode").compile(name="r3agent")
