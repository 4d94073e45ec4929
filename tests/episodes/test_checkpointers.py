"""LangGraph's checkpointers: what they keep is JSON and whole, and can be gone back to."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph

from r3agent import EndpointError, build_graph
from r3agent.episodes.state import EpisodeState
from r3agent.testing import ScriptedPolicy
from tests.episodes.episodes import CHAIN, FAILS_ONCE, INPUT, labels, on_thread, right, tree
from tests.episodes.savers import Where, async_saver, saver

BRANCHES: Any = {"max_attempts": 3, "reflections": 2, "retries": 2, "blind_retries": 1}


def build(policy: ScriptedPolicy, **limits: Any) -> Any:
    return build_graph(policy=policy, verifier=right, **limits)


def new_thread() -> Any:
    return on_thread(uuid4().hex)  # the server is one for all tests


def test_in_sync_an_episode_is_kept_whole(on_disk: Where) -> None:
    config = new_thread()
    with saver(on_disk) as checkpointer:
        output = build(ScriptedPolicy("wrong"), **BRANCHES).compile(checkpointer).invoke(INPUT, config)
    with saver(on_disk) as checkpointer:  # another connection
        app = build(ScriptedPolicy([]), **BRANCHES).compile(checkpointer)
        history = [snapshot.values for snapshot in app.get_state_history(config)]
    assert history[0]["trajectory"] == output["trajectory"]
    assert len(tree(output).spans) == 1 + 2 + 4 + 1 + 8 + 16 + 4
    assert all(json.loads(json.dumps(values)) == values for values in history)


async def test_in_async_an_episode_is_kept_whole(on_disk: Where) -> None:
    config = new_thread()
    async with async_saver(on_disk) as checkpointer:
        output = await build(ScriptedPolicy("wrong"), **BRANCHES).compile(checkpointer).ainvoke(INPUT, config)
    async with async_saver(on_disk) as checkpointer:
        app = build(ScriptedPolicy([]), **BRANCHES).compile(checkpointer)
        history = [snapshot.values async for snapshot in app.aget_state_history(config)]
    assert history[0]["trajectory"] == output["trajectory"]
    assert all(json.loads(json.dumps(values)) == values for values in history)


def embedded(policy: ScriptedPolicy) -> Any:
    parent = StateGraph(EpisodeState)
    parent.add_node("solve", build(policy).compile())
    return parent.add_edge(START, "solve")


@pytest.mark.parametrize("whole", [build, embedded], ids=["alone", "as a node"])
def test_an_error_is_resumed_from_by_another_process(on_disk: Where, whole: Callable[..., Any]) -> None:
    config = new_thread()
    policy = ScriptedPolicy({**FAILS_ONCE, "retry": EndpointError("down")})
    with saver(on_disk) as checkpointer, pytest.raises(EndpointError, match="down"):
        whole(policy).compile(checkpointer).invoke(INPUT, config)
    with saver(on_disk) as checkpointer:
        policy = ScriptedPolicy({"retry": "right"})  # whatever else is asked for is an error
        output = whole(policy).compile(checkpointer).invoke(None, config)
    assert labels(output) == CHAIN
    assert output["passed"] is True


# ---- time travel ----


@pytest.mark.parametrize("reflections", [1, 2])
async def test_going_back_to_the_failed_attempt_tries_another_reflection(reflections: int) -> None:
    policy = ScriptedPolicy({"attempt": "wrong", "reflect": ["a", "b", "c", "d"], "retry": "wrong"})
    app = build(policy, reflections=reflections).compile(InMemorySaver())
    config = new_thread()
    first = await app.ainvoke(INPUT, config)
    failed = [snapshot async for snapshot in app.aget_state_history(config) if snapshot.next == ("reflect",)]
    second = await app.ainvoke(None, failed[0].config)
    asked = [call.asked for call in policy.calls]
    assert asked == ["attempt", *["reflect", *["retry"] * reflections] * 2]
    (attempt, *before), (same, *after) = tree(first).spans, tree(second).spans
    assert same == attempt
    assert [span.text for span in before if span.label == "reflect"] == ["a", "b"][:reflections]
    assert [span.text for span in after if span.label == "reflect"] == ["a", "b", "c", "d"][reflections:][:reflections]
    assert not {span.span_id for span in before} & {span.span_id for span in after}
    assert (await app.aget_state(config)).values["trajectory"] == second["trajectory"]


def test_going_back_to_the_reflections_draws_every_retry_anew() -> None:
    policy = ScriptedPolicy({"attempt": "wrong", "reflect": "hm", "retry": ["wrong"] * 3 + ["wrong", "wrong", "right"]})
    app = build(policy, reflections=3).compile(InMemorySaver())
    config = new_thread()
    app.invoke(INPUT, config)
    [reflected] = [snapshot for snapshot in app.get_state_history(config) if snapshot.next == ("retry",)]
    output = app.invoke(None, reflected.config)
    assert (output["passed"], len(tree(output).spans)) == (True, 7)


def test_a_reflection_may_be_written_by_hand() -> None:
    policy = ScriptedPolicy(FAILS_ONCE)
    app = build(policy).compile(InMemorySaver())
    config = new_thread()
    app.invoke(INPUT, config)
    [reflected] = [snapshot for snapshot in app.get_state_history(config) if snapshot.next == ("retry",)]
    reflection = {**reflected.values["spans"][1], "text": "by hand", "capability": "eval-only"}
    fork = app.update_state(reflected.config, {"spans": [reflection]}, as_node="reflect")
    output = app.invoke(None, fork)
    assert labels(output) == CHAIN
    assert tree(output).spans[1].text == "by hand"
    assert policy.calls[-1].messages[-2] == {"role": "assistant", "content": "by hand"}
