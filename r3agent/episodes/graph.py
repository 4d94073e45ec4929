"""Loop of the graph: attempt -> verify -> reflect -> retry -> verify ..., as an uncompiled LangGraph `StateGraph`.

In an application the tree of spans is a chain. In collection it branches: `reflections` x `retries`, plus
`blind_retries` as a control. The graph is the same. Nodes work on the whole frontier instead of using one `Send` per
span: the drawing keeps its four nodes, one `n = G` request samples all siblings, so the server can share their prefill,
and an episode of 18 spans needs half of the CPU time (`benchmarks/graph_overhead.py`). The cost is that after an error
the current step is repeated as a whole, except for the responses that `r3agent.episodes.checkpointed` has saved. Where
there is no thread to resume, `r3agent.episodes.without_thread` runs the same nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal, TypeAlias, TypeVar, get_args

from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.runnables.config import set_config_context
from langgraph.graph import START, StateGraph
from langgraph.runtime import get_runtime
from typing_extensions import Unpack

from r3agent._util.aio import run_sync
from r3agent.episodes.agents.base import Environment
from r3agent.episodes.assembly import assemble
from r3agent.episodes.config import EpisodeContext, EpisodeOptions
from r3agent.episodes.course import Course
from r3agent.episodes.lineage import begin, hashes, output_hash, proceed, run_metadata, warn_of_edited_output
from r3agent.episodes.nodes import Nodes
from r3agent.episodes.state import (
    EpisodeInput,
    EpisodeOutput,
    EpisodeState,
    Json,
    course_of,
    merge_spans,
    task_of,
    update_of,
)
from r3agent.policy import Policy
from r3agent.records.trajectory import RECORDED
from r3agent.telemetry.tracing import within_trajectory
from r3agent.verifiers import Verifier

T = TypeVar("T")

Next: TypeAlias = Literal["reflect", "retry", "__end__"]

Step: TypeAlias = Callable[[Nodes, Course], Coroutine[Any, Any, Course]]

Update: TypeAlias = dict[str, Any]


def build_graph(
    *,
    policy: Policy,
    verifier: Verifier,
    agent: object | None = None,
    tools: Sequence[Any] = (),
    environment: Environment | None = None,
    stream: bool = False,
    **options: Unpack[EpisodeOptions],
) -> StateGraph[EpisodeState, EpisodeContext, EpisodeInput, EpisodeOutput]:
    """Build the reflect-retry graph; compile it with your own checkpointer, store and name.

    The input is `{"task": {...}}`, the output `{"answer", "passed", "trajectory"}`; both are JSON. `invoke` and
    `ainvoke` work. A run overrides limits and sampling with `context={...}`: see `EpisodeContext`.

    Args:
        policy: model of the tries and the reflections; with an agent, the model that the agent asks.
        agent: maker of the tries: a LangChain or LangGraph runnable of messages, a function `(messages, client)`, or a
            `Program`; see `r3agent.episodes.agents`. Default: a try is one completion.
        tools: functions, LangChain tools or MCP servers: a try is a loop of completions and tool calls.
        environment: factory `(task) -> async context manager` of the world of each try, for agent, tools and verifier.
        stream: sample with streaming requests, for callers that show tokens as they arrive; see
            `r3agent.episodes.token_stream`.
        options: fields of `EpisodeConfig`: the limits `max_attempts`, `reflections`, `retries` and `blind_retries`;
            the templates `reflect_prompt`, `retry_prompt` and `blind_retry_prompt`; `sampling` and `reflect_sampling`.

    Raises:
        ConfigError: `policy` cannot sample or stream; `verifier` does not take a task and an answer; `agent` is none of
            the above, or there are tools too; a limit is not an integer or out of range; a sampling is not a
            `Sampling`; or a prompt is not a template or uses an unknown variable.

    At run time, an input without a valid task raises a `ConfigError`. A `PolicyError` or a `VerifierError` passes
    through: resume from the checkpoint, or let `collect` record it. On a thread with `durability="sync"`, a resumed run
    repeats no request that was answered, even after the process was killed. A `RetryPolicy` repeats a whole step; the
    default one does not retry a `PolicyError`, because its request has been retried already: use
    `retry_on=EndpointError` to wait for the end of an outage.
    """
    made_by: Any = {"agent": agent, "tools": tools, "environment": environment}
    nodes = assemble(policy=policy, verifier=verifier, stream=stream, **made_by, **options)
    graph = StateGraph(
        EpisodeState, context_schema=EpisodeContext, input_schema=EpisodeInput, output_schema=EpisodeOutput
    )
    for step in (Nodes.attempt, Nodes.verify, Nodes.reflect, Nodes.retry):
        is_try = nodes.runner is not None and step in (Nodes.attempt, Nodes.retry)
        graph.add_node(step.__name__, TryNode(nodes, step) if is_try else AsyncNode(nodes, step))
    graph.add_edge(START, "attempt")
    graph.add_edge("attempt", "verify")
    graph.add_conditional_edges("verify", Router(nodes), list(get_args(Next)))
    graph.add_edge("reflect", "retry")
    graph.add_edge("retry", "verify")
    return graph


class AsyncStep(Runnable[EpisodeState, T]):
    """Async node or router with the run's context, which also works under `invoke`.

    LangGraph would run a sync router in a thread, and LangChain's `RunnableLambda` inspects its function at every step.
    """

    name = None

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes

    def invoke(self, input: EpisodeState, config: RunnableConfig | None = None, **kwargs: Any) -> T:
        return run_sync(self._run(input, config or {}))

    async def ainvoke(self, input: EpisodeState, config: RunnableConfig | None = None, **kwargs: Any) -> T:
        return await self._run(input, config or {})

    async def _run(self, state: EpisodeState, config: RunnableConfig) -> T:
        raise NotImplementedError


class Router(AsyncStep[Next]):
    """Way from `verify` to reflections on the failed tries, to a retry without reflection, or to the end."""

    async def _run(self, state: EpisodeState, config: RunnableConfig) -> Next:
        if not state.get("frontier"):
            return "__end__"
        with set_config_context(config) as running:  # LangGraph sets it for nodes, but not for routers
            runtime = running.run(get_runtime)  # none where `update_state` calls the router outside of a run
        return "reflect" if self._nodes.under(runtime and runtime.context).config.reflections else "retry"


class AsyncNode(AsyncStep[Update]):
    """Node that reads the course of the episode from the state, and returns what its step changed as an update.

    It also keeps the episode's identity and notices branches and edits.
    """

    def __init__(self, nodes: Nodes, step: Step) -> None:
        super().__init__(nodes)
        self._step = step

    async def _run(self, state: EpisodeState, config: RunnableConfig) -> Update:
        is_begin, is_verify = self._step is Nodes.attempt, self._step is Nodes.verify
        metadata = config.get("metadata", {})
        if not is_begin:
            warn_of_edited_output(state)
        if "task" in state:
            parsed: Any = {**state, "task": task_of(state)}  # once, and not by each of the functions that read it
            state = parsed
        own: Json = (begin if is_begin else proceed)(state, metadata)
        seen: Any = {**state, **own, "spans": merge_spans(state.get("spans") or [], own["spans"])}
        before = course_of(seen, "beginning" if is_begin else "verification" if is_verify else "growth")
        with within_trajectory(own["lineage"]["trajectory_id"] or own["lineage"]["root"]):
            after = await self._step(self._nodes.under(get_runtime().context), before)
        update = update_of(before, after, is_verified=is_verify)
        if "task" in update:  # tools that an agent brings are a part of it
            equipped: Any = {**seen, **update}
            kept = {name: own["lineage"][name] for name in ("began", "earlier")}
            own["lineage"] = {**begin(equipped, metadata)["lineage"], **kept}
        if is_begin and (recorded := after.tree.metadata.get(RECORDED)):
            named = {"trajectory_id": after.tree.trajectory_id, "parent_id": after.tree.parent_id}
            own["lineage"] |= {**named, "recorded": recorded}
        if "trajectory" in update:
            update["trajectory"]["metadata"] = {**run_metadata(config), **update["trajectory"]["metadata"]}
        spans = [*own["spans"], *update["spans"]]
        known = {**own["lineage"]["spans"], **{span["span_id"]: hashes(span) for span in spans}}
        lineage = {**own["lineage"], "spans": known, "output": output_hash({**state, **update})}
        return {**update, "lineage": lineage, "spans": spans}


class TryNode(AsyncNode, RunnableLambda[EpisodeState, Update]):
    """Node of tries; a `RunnableLambda` names the graphs that it runs, so that LangGraph finds its subgraphs."""

    def __init__(self, nodes: Nodes, step: Step) -> None:
        super().__init__(nodes, step)
        assert nodes.runner is not None
        runnable = getattr(nodes.runner.agent, "runnable", None)
        self.deps = [runnable] if isinstance(runnable, Runnable) else []

    # A lambda's own would ask for its function; `astream_events` streams the nodes.
    stream, astream, transform, atransform = Runnable.stream, Runnable.astream, Runnable.transform, Runnable.atransform
