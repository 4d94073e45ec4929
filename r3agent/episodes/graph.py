"""Loop of the graph: attempt -> verify -> reflect -> retry -> verify ..., as an uncompiled LangGraph `StateGraph`.

In an application the tree of spans is a chain. In collection it branches: `reflections` x `retries`, plus
`blind_retries` as a control. It is the same graph. Branches are grown by nodes that work on the whole frontier
rather than by one `Send` for each span: the drawing stays the four nodes, siblings are drawn with one `n = G`
request, which lets the server share their prefill, and an episode of 18 spans costs a third of the CPU (11 ms
against 34 ms, `benchmarks/graph_overhead.py`). The price is that after an error the open step is repeated as a whole,
but for the answers that `r3agent.episodes.checkpointed` has kept.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import Any, Literal, TypeAlias, TypeVar, get_args

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import set_config_context
from langgraph.graph import START, StateGraph
from langgraph.runtime import get_runtime
from typing_extensions import Unpack

from r3agent._util.aio import run_sync
from r3agent._util.messages import shorten
from r3agent.episodes.config import EpisodeConfig, EpisodeContext, EpisodeOptions
from r3agent.episodes.nodes import Nodes, Streamer
from r3agent.episodes.state import EpisodeInput, EpisodeOutput, EpisodeState
from r3agent.errors import ConfigError
from r3agent.policy import Policy
from r3agent.verifiers import Verifier

T = TypeVar("T")

Next: TypeAlias = Literal["reflect", "retry", "__end__"]


def build_graph(
    *,
    policy: Policy,
    verifier: Verifier,
    stream: bool = False,
    **options: Unpack[EpisodeOptions],
) -> StateGraph[EpisodeState, EpisodeContext, EpisodeInput, EpisodeOutput]:
    """Build the reflect-retry graph; compile it with your own checkpointer, store and name.

    Input `{"task": {...}}`, output `{"answer", "passed", "trajectory"}`; both are JSON. `invoke` and `ainvoke` work.
    A run overrides limits and sampling with `context={...}`: see `EpisodeContext`.

    Args:
        stream: sample with streaming requests, for callers that show tokens as they come; see
            `r3agent.episodes.token_stream`.
        options: fields of `EpisodeConfig`: the limits `max_attempts`, `reflections`, `retries` and `blind_retries`;
            the templates `reflect_prompt`, `retry_prompt` and `blind_retry_prompt`; `sampling` and `reflect_sampling`.

    Raises:
        ConfigError: `policy` cannot sample, or not stream; `verifier` cannot be called; a limit is no whole number or
            out of range; a sampling is no `Sampling`; or a prompt is no template or names what it is not given.

    When it runs, an input without a task, or with none that can be read, is a `ConfigError`. A `PolicyError` or a
    `VerifierError` leaves the graph as it is: resume from the checkpoint, or let `collect` record it. On a thread with
    `durability="sync"`, a run that is resumed, after a killed process too, repeats no request that was answered. A
    `RetryPolicy` repeats a whole step; the default one leaves a `PolicyError` alone, for transport has been retried:
    name `retry_on=EndpointError` to sit out an outage.
    """
    _check_collaborators(policy, verifier)
    config = EpisodeConfig.of(options)
    nodes = Nodes(
        policy=policy,
        verifier=verifier,
        config=config,
        templates=config.templates(),
        streamer=_streamer(policy) if stream else None,
    )

    graph = StateGraph(
        EpisodeState, context_schema=EpisodeContext, input_schema=EpisodeInput, output_schema=EpisodeOutput
    )
    for node in (Nodes.attempt, Nodes.verify, Nodes.reflect, Nodes.retry):
        graph.add_node(node.__name__, AsyncStep(nodes, node))
    graph.add_edge(START, "attempt")
    graph.add_edge("attempt", "verify")
    graph.add_conditional_edges("verify", AsyncStep(nodes, after_verify), list(get_args(Next)))
    graph.add_edge("reflect", "retry")
    graph.add_edge("retry", "verify")
    return graph


async def after_verify(nodes: Nodes, state: EpisodeState) -> Next:
    """Route: reflect on the failed tries or retry them, or end."""
    if not state["frontier"]:
        return "__end__"
    return "reflect" if nodes.config.reflections else "retry"


class AsyncStep(Runnable[EpisodeState, T]):
    """Async node or router under the run's context, which `invoke` can run too.

    LangGraph would run a sync router in a thread, and LangChain's `RunnableLambda` inspects itself at every step.
    """

    name = None

    def __init__(self, nodes: Nodes, step: Callable[[Nodes, EpisodeState], Coroutine[Any, Any, T]]) -> None:
        self._nodes = nodes
        self._step = step

    def invoke(self, input: EpisodeState, config: RunnableConfig | None = None, **kwargs: Any) -> T:
        return run_sync(self._run(input, config))

    async def ainvoke(self, input: EpisodeState, config: RunnableConfig | None = None, **kwargs: Any) -> T:
        return await self._run(input, config)

    def _run(self, state: EpisodeState, config: RunnableConfig | None) -> Coroutine[Any, Any, T]:
        with set_config_context(config or {}) as running:  # which LangGraph has done for nodes, but not for routers
            context: object = running.run(get_runtime).context
        return self._step(self._nodes.under(context), state)


def _check_collaborators(policy: object, verifier: object) -> None:
    # No more than the graph needs: policies and verifiers of an application are of any class.
    if not callable(getattr(policy, "sample", None)):
        model = repr(policy) if isinstance(policy, str) else "model"
        raise ConfigError(
            f"policy = {shorten(policy)}: it has no sample(); pass OpenAIPolicy(base_url, {model}), "
            "or what implements r3agent.Policy"
        )
    if not callable(verifier):
        name = repr(verifier) if isinstance(verifier, str) else "name"
        raise ConfigError(
            f"verifier = {shorten(verifier)}: it is no callable (task, answer) -> bool; pass your own, "
            f"or r3agent.verifiers.find_verifier({name})"
        )


def _streamer(policy: Policy) -> Streamer:
    if "on_delta" not in inspect.signature(policy.sample).parameters:
        raise ConfigError(
            f"stream = True: {type(policy).__name__}.sample takes no on_delta; give it one as OpenAIPolicy has, "
            "or leave stream out"
        )
    from r3agent.episodes.token_stream import stream_spans

    return stream_spans
