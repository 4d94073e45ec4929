"""Loop of the graph: attempt -> verify -> reflect -> retry -> verify ..., as an uncompiled LangGraph `StateGraph`.

In an application the tree of spans is a chain. In collection it branches: `reflections` x `retries`, plus
`blind_retries` as a control. The graph is the same. Nodes work on the whole frontier instead of using one `Send` per
span: the drawing keeps its four nodes, one `n = G` request samples all siblings, so the server can share their prefill,
and an episode of 18 spans needs half of the CPU time (8 ms instead of 16 ms, `benchmarks/graph_overhead.py`). The
cost is that after an error the current step is repeated as a whole, except for the responses that
`r3agent.episodes.checkpointed` has saved.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal, TypeAlias, TypeVar, get_args

from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.runnables.config import set_config_context
from langgraph.graph import START, StateGraph
from langgraph.runtime import get_runtime
from typing_extensions import Unpack

from r3agent._util.aio import run_sync
from r3agent.episodes.agents.base import Agent, Environment
from r3agent.episodes.agents.tries import TryRunner
from r3agent.episodes.collaborators import check_environment, check_policy, check_verifier
from r3agent.episodes.config import EpisodeConfig, EpisodeContext, EpisodeOptions
from r3agent.episodes.lineage import begin, hashes, output_hash, proceed, run_metadata, warn_of_edited_output
from r3agent.episodes.nodes import Nodes, Update
from r3agent.episodes.sampler import Sampler, Streamer
from r3agent.episodes.state import EpisodeInput, EpisodeOutput, EpisodeState, Json, merge_spans, task_of
from r3agent.errors import ConfigError
from r3agent.policy import Policy
from r3agent.telemetry.tracing import within_trajectory
from r3agent.verifiers import Verifier
from r3agent.verifiers.interface import takes_environment

T = TypeVar("T")

Next: TypeAlias = Literal["reflect", "retry", "__end__"]


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
    check_policy(policy)
    check_verifier(verifier)
    config, sampler = EpisodeConfig.of(options), Sampler(_streamer(policy) if stream else None)
    nodes = Nodes(
        policy=policy,
        verifier=verifier,
        config=config,
        templates=config.templates(),
        sampler=sampler,
        runner=_runner(policy, agent, tools, environment, verifier, config, sampler),
    )

    graph = StateGraph(
        EpisodeState, context_schema=EpisodeContext, input_schema=EpisodeInput, output_schema=EpisodeOutput
    )
    for node in (Nodes.attempt, Nodes.verify, Nodes.reflect, Nodes.retry):
        is_try = nodes.runner is not None and node in (Nodes.attempt, Nodes.retry)
        graph.add_node(node.__name__, TryNode(nodes, node) if is_try else AsyncNode(nodes, node))
    graph.add_edge(START, "attempt")
    graph.add_edge("attempt", "verify")
    graph.add_conditional_edges("verify", AsyncStep(nodes, after_verify), list(get_args(Next)))
    graph.add_edge("reflect", "retry")
    graph.add_edge("retry", "verify")
    return graph


async def after_verify(nodes: Nodes, state: EpisodeState) -> Next:
    """Route to reflection on the failed tries, to a retry without reflection, or to the end."""
    if not state.get("frontier"):
        return "__end__"
    return "reflect" if nodes.config.reflections else "retry"


class AsyncStep(Runnable[EpisodeState, T]):
    """Async node or router with the run's context, which also works under `invoke`.

    LangGraph would run a sync router in a thread, and LangChain's `RunnableLambda` inspects its function at every step.
    """

    name = None

    def __init__(self, nodes: Nodes, step: Callable[[Nodes, EpisodeState], Coroutine[Any, Any, T]]) -> None:
        self._nodes = nodes
        self._step = step

    def invoke(self, input: EpisodeState, config: RunnableConfig | None = None, **kwargs: Any) -> T:
        return run_sync(self._run(input, config or {}))

    async def ainvoke(self, input: EpisodeState, config: RunnableConfig | None = None, **kwargs: Any) -> T:
        return await self._run(input, config or {})

    async def _run(self, state: EpisodeState, config: RunnableConfig) -> T:
        runtime = self._runtime(config)
        return await self._step(self._nodes.under(runtime and runtime.context), state)

    def _runtime(self, config: RunnableConfig) -> Any:
        with set_config_context(config) as running:  # LangGraph sets it for nodes, but not for routers
            return running.run(get_runtime)  # none where `update_state` calls the router outside of a run


class AsyncNode(AsyncStep[Update]):
    """Node that also keeps the episode's identity and notices branches and edits."""

    def _runtime(self, config: RunnableConfig) -> Any:
        return get_runtime()

    async def _run(self, state: EpisodeState, config: RunnableConfig) -> Update:
        identify = begin if self._step is Nodes.attempt else proceed
        if identify is proceed:
            warn_of_edited_output(state)
        metadata = config.get("metadata", {})
        if "task" in state:
            parsed: Any = {**state, "task": task_of(state)}  # once, and not by each of the functions that read it
            state = parsed
        own: Json = identify(state, metadata)
        seen: Any = {**state, **own, "spans": merge_spans(state.get("spans") or [], own["spans"])}
        with within_trajectory(own["lineage"]["trajectory_id"] or own["lineage"]["root"]):
            update = await super()._run(seen, config)
        if "task" in update:  # tools that an agent brings are a part of it
            equipped: Any = {**seen, **update}
            kept = {name: own["lineage"][name] for name in ("began", "earlier")}
            own["lineage"] = {**begin(equipped, metadata)["lineage"], **kept}
        own["lineage"] |= update.pop("lineage", {})  # of a branch of a recorded episode
        if "trajectory" in update:
            update["trajectory"]["metadata"] = {**run_metadata(config), **update["trajectory"]["metadata"]}
        spans = [*own["spans"], *update["spans"]]
        known = {**own["lineage"]["spans"], **{span["span_id"]: hashes(span) for span in spans}}
        lineage = {**own["lineage"], "spans": known, "output": output_hash({**state, **update})}
        return {**update, "lineage": lineage, "spans": spans}


class TryNode(AsyncNode, RunnableLambda[EpisodeState, Update]):
    """Node of tries; a `RunnableLambda` names the graphs that it runs, so that LangGraph finds its subgraphs."""

    def __init__(self, nodes: Nodes, step: Callable[[Nodes, EpisodeState], Coroutine[Any, Any, Update]]) -> None:
        super().__init__(nodes, step)
        assert nodes.runner is not None
        runnable = getattr(nodes.runner.agent, "runnable", None)
        self.deps = [runnable] if isinstance(runnable, Runnable) else []

    # A lambda's own would ask for its function; `astream_events` streams the nodes.
    stream, astream, transform, atransform = Runnable.stream, Runnable.astream, Runnable.transform, Runnable.atransform


def _runner(
    policy: Policy,
    agent: object | None,
    tools: Sequence[Any],
    environment: Environment | None,
    verifier: Verifier,
    config: EpisodeConfig,
    sampler: Sampler,
) -> TryRunner | None:
    """Return the runner of tries of several steps; `None` if a try is one completion in no world."""
    if agent is None and not tools and environment is None:
        if takes_environment(verifier, required=True):
            raise ConfigError(
                "the verifier takes a third argument, the environment of a try, and there is none; write "
                "def check(task, answer), or pass environment=, an agent or tools"
            )
        return None
    check_environment(environment)
    if agent is not None and tools:
        raise ConfigError(
            "agent and tools: an agent has its own tools; give them to it, or pass tools without an agent"
        )
    if agent is None:
        from r3agent.episodes.agents.tool_loop import ToolLoop

        maker: Agent = ToolLoop.of(tools, has_world=environment is not None, config=config, sampler=sampler)
    else:
        from r3agent.episodes.agents.choice import choose_agent

        maker = choose_agent(agent, policy)
        environment = environment or getattr(maker, "world", None)  # a program has a directory
    return TryRunner(agent=maker, environment=environment, verifier=verifier)


def _streamer(policy: Policy) -> Streamer:
    if "on_delta" not in inspect.signature(policy.sample).parameters:
        raise ConfigError(
            f"stream = True: {type(policy).__name__}.sample takes no on_delta; give it one as OpenAIPolicy has, "
            "or leave stream out"
        )
    from r3agent.episodes.token_stream import stream_spans

    return stream_spans
