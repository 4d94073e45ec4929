"""Threads that are used again, and what a run's config says of it."""

from __future__ import annotations

from typing import Any

from langgraph.checkpoint.memory import InMemorySaver

from r3agent import build_graph
from r3agent.episodes.lineage import begin
from r3agent.policy import Sampling
from r3agent.testing import ScriptedPolicy
from tests.episodes.episodes import CHAIN, FAILS_ONCE, INPUT, labels, on_thread, right, tree
from tests.support.trees import span


async def test_thread_keeps_one_episode_and_draws_each_differently() -> None:
    policy = ScriptedPolicy(FAILS_ONCE)
    built = build_graph(policy=policy, verifier=right, sampling=Sampling(seed=1))
    graph = built.compile(checkpointer=InMemorySaver())
    for _ in range(4):
        assert labels(await graph.ainvoke(INPUT, on_thread())) == CHAIN
    state = (await graph.aget_state(on_thread())).values
    assert len(state["spans"]) == 3
    assert state["lineage"]["earlier"] == 3
    assert len({call.sampling and call.sampling.seed for call in policy.calls}) == 12


def test_thread_of_an_older_release_has_all_its_episodes() -> None:
    spans = [span("attempt", passed=False).model_dump(mode="json") for _ in range(2)]
    state: Any = {**INPUT, "spans": spans}
    assert begin(state, {"langgraph_step": 9})["lineage"]["earlier"] == 2


async def test_metadata_tags_and_thread_of_a_run_are_recorded() -> None:
    graph = build_graph(policy=ScriptedPolicy(FAILS_ONCE), verifier=right).compile(checkpointer=InMemorySaver())
    more: Any = {"tags": ["beta"], "metadata": {"customer": 7, "odd": {1, 2}}}
    config: Any = {"configurable": {"thread_id": "1", "api_key": "sk-secret", "user": "Ann"}, **more}
    recorded = tree(await graph.ainvoke(INPUT, config)).metadata
    assert recorded.keys() == {"tags", "customer", "odd", "thread_id"}
    assert (recorded["tags"], recorded["customer"], recorded["thread_id"]) == (["beta"], 7, "1")
    plain = build_graph(policy=ScriptedPolicy("right"), verifier=right).compile()
    assert tree(await plain.ainvoke(INPUT)).metadata == {}
