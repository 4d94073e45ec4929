"""LangGraph's own retries, timeouts and cancellation, next to those of the requests."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import NodeTimeoutError
from langgraph.graph import START, StateGraph
from langgraph.types import RetryPolicy, TimeoutPolicy

from r3agent import AccessError, EndpointError, OpenAIPolicy, VerifierError, build_graph
from r3agent.episodes.state import EpisodeState
from r3agent.testing import HANG, SERVER_ERROR, ScriptedEndpoint, ScriptedPolicy
from tests.episodes.episodes import CHAIN, FAILS_ONCE, INPUT, labels, on_thread, policy_at, right

AT_ONCE: Any = {"initial_interval": 0.0, "jitter": False}


def in_a_parent(solver: Any, **node: Any) -> Any:
    parent = StateGraph(EpisodeState)
    parent.add_node("solve", solver, **node)
    return parent.add_edge(START, "solve")


@pytest.fixture(params=["invoke", "ainvoke"])
def run(request: pytest.FixtureRequest) -> Any:
    async def runs(app: Any, *args: Any) -> Any:
        return app.invoke(*args) if request.param == "invoke" else await app.ainvoke(*args)

    return runs


# ---- retries ----


@pytest.mark.parametrize("place", ["node", "parent's node"])
async def test_the_default_retry_policy_repeats_no_request(run: Any, place: str) -> None:
    retries = RetryPolicy(**AT_ONCE)
    with ScriptedEndpoint(faults=[SERVER_ERROR] * 9) as endpoint:
        async with policy_at(endpoint, max_tries=1) as policy:
            graph = build_graph(policy=policy, verifier=right)
            if place == "node":
                app = graph.set_node_defaults(retry_policy=retries).compile()
            else:
                app = in_a_parent(graph.compile(), retry_policy=retries).compile()
            with pytest.raises(EndpointError, match="500 out of memory"):
                await run(app, INPUT)
        assert len(endpoint.received) == 1


async def test_an_outage_is_sat_out_by_a_policy_that_names_it(run: Any) -> None:
    policy = ScriptedPolicy({**FAILS_ONCE, "retry": [EndpointError("down"), EndpointError("down"), "right"]})
    graph = build_graph(policy=policy, verifier=right)
    graph.set_node_defaults(retry_policy=RetryPolicy(retry_on=EndpointError, **AT_ONCE))
    assert labels(await run(graph.compile(), INPUT)) == CHAIN
    assert [call.asked for call in policy.calls] == [*CHAIN, "retry", "retry"]


@pytest.mark.parametrize("is_kept", [False, True])
async def test_a_repeated_step_of_several_requests_leaves_no_span_of_its_first_try(run: Any, is_kept: bool) -> None:
    replies = ["a", EndpointError("down"), *"bcdef"]
    policy = ScriptedPolicy({"attempt": "wrong", "reflect": "hm", "retry": replies})
    graph = build_graph(policy=policy, verifier=right, reflections=3)
    graph.set_node_defaults(retry_policy=RetryPolicy(retry_on=EndpointError, **AT_ONCE))
    output = await run(graph.compile(InMemorySaver() if is_kept else None), INPUT, on_thread())
    assert labels(output) == ["attempt", *["reflect"] * 3, *["retry"] * 3]


async def test_a_verifier_that_fails_for_a_moment_is_asked_again_without_another_attempt(run: Any) -> None:
    mood = iter([ConnectionError("judge is down"), None])

    def judge(task: Any, answer: str) -> bool:
        if error := next(mood):
            raise error
        return True

    policy = ScriptedPolicy("4")
    graph = build_graph(policy=policy, verifier=judge)
    graph.set_node_defaults(retry_policy=RetryPolicy(retry_on=VerifierError, **AT_ONCE))
    assert (await run(graph.compile(), INPUT))["passed"] is True
    assert len(policy.calls) == 1


# ---- timeouts ----


@pytest.mark.parametrize("timeout", [0.2, TimeoutPolicy(idle_timeout=0.2)], ids=["run", "idle"])
async def test_a_timeout_of_the_node_ends_its_request(timeout: Any) -> None:
    with ScriptedEndpoint(faults=[HANG]) as endpoint:
        async with policy_at(endpoint) as policy:
            app = build_graph(policy=policy, verifier=right).set_node_defaults(timeout=timeout).compile()
            with pytest.raises(NodeTimeoutError):
                await app.ainvoke(INPUT)
            await asyncio.to_thread(endpoint.wait_for_hanging, 0)
        assert len(endpoint.received) <= 1  # none where the machine is slower than the timeout


async def test_what_a_timeout_cut_off_is_taken_up_from_the_checkpoint() -> None:
    async def never(messages: Any) -> str:
        await asyncio.Event().wait()
        return ""

    saver = InMemorySaver()
    stuck = build_graph(policy=ScriptedPolicy({"attempt": "wrong", "reflect": never}), verifier=right)
    stuck.nodes["reflect"].timeout = TimeoutPolicy(run_timeout=0.1)
    with pytest.raises(NodeTimeoutError):
        await stuck.compile(saver).ainvoke(INPUT, on_thread())
    healthy = build_graph(policy=ScriptedPolicy({"reflect": "hm", "retry": "right"}), verifier=right)
    assert labels(await healthy.compile(saver).ainvoke(None, on_thread())) == CHAIN


# ---- cancellation ----


@pytest.mark.parametrize("is_kept", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_cancelled_it_leaves_no_request_behind(is_kept: bool, stream: bool) -> None:
    faults = [None, None, *[HANG] * 3]  # the attempt, the reflections, three retries
    with ScriptedEndpoint("wrong", faults=faults) as endpoint:
        async with policy_at(endpoint) as policy:
            graph = build_graph(policy=policy, verifier=right, reflections=3, stream=stream)
            app = in_a_parent(graph.compile()).compile(InMemorySaver() if is_kept else None)
            running = asyncio.create_task(app.ainvoke(INPUT, on_thread()))
            await asyncio.to_thread(endpoint.wait_for_hanging, 3)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            await asyncio.to_thread(endpoint.wait_for_hanging, 0)
        assert len(endpoint.received) == 5


@pytest.mark.parametrize("is_kept", [False, True])
async def test_one_error_leaves_no_sibling_behind(run: Any, is_kept: bool) -> None:
    refused = ScriptedEndpoint("wrong", faults=[None, None, HANG, HANG], api_key="key")
    with refused as endpoint:
        async with policy_at(endpoint, api_key="key") as policy:

            class Third(OpenAIPolicy):
                asked = 0

                async def sample(self, messages: Any, **more: Any) -> Any:
                    self.asked += len(messages) > 3
                    if self.asked == 3:
                        await asyncio.to_thread(endpoint.wait_for_hanging, 2)
                        raise AccessError("no")
                    return await policy.sample(messages, **more)

            graph = build_graph(policy=Third(endpoint.url, "scripted"), verifier=right, reflections=3)
            with pytest.raises(AccessError, match="no"):
                await run(graph.compile(InMemorySaver() if is_kept else None), INPUT, on_thread())
            await asyncio.to_thread(endpoint.wait_for_hanging, 0)
