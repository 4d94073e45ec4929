"""`trace(resume=...)`: an episode outlives its block, its process and its request."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import openai
import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.types import Command, interrupt

import r3agent
from r3agent import ConfigError, Recorder, Trajectory, groups, load
from r3agent.recording.episode import OUTER
from r3agent.records.trajectory import EpisodeError
from r3agent.store.shards import latest
from r3agent.testing import ScriptedEndpoint

ASK: Any = [{"role": "user", "content": "2 + 2?"}]
WHY: Any = [{"role": "user", "content": "Why?"}]


@pytest.fixture
def client() -> Iterator[openai.OpenAI]:
    with ScriptedEndpoint("4") as server, openai.OpenAI(base_url=server.url, api_key="x") as plain:
        yield r3agent.instrument(plain)


def say(client: openai.OpenAI, messages: Any = ASK) -> None:
    client.chat.completions.create(model="scripted", messages=messages)


def later(client: openai.OpenAI, tree: Any, **where: Any) -> Trajectory:
    with r3agent.trace(resume=tree, metadata={"round": 2}, **where) as episode:
        with episode.span("reflect", parent=episode.answer) as reflection:
            say(client, WHY)
        with episode.span("retry", parent=reflection):
            say(client)
        episode.verdict(passed=True)
    return episode.trajectory


@pytest.mark.parametrize("form", ["trajectory", "json", "id", "recorder"])
def test_resume_goes_on_with_the_same_episode(form: str, client: openai.OpenAI, tmp_path: Path) -> None:
    with Recorder(tmp_path) as recorder:
        where: Any = {"recorder": recorder} if form == "recorder" else {"out": tmp_path}
        with r3agent.trace(**where, metadata={"app": "x"}) as episode:
            say(client)
            episode.verdict(passed=False)
        begun = episode.trajectory
        tree: Any = {"trajectory": begun, "json": begun.model_dump(mode="json")}.get(form, begun.trajectory_id)
        ended = later(client, tree, **where)
    [stored] = load(tmp_path)
    assert stored == ended
    assert (stored.trajectory_id, stored.created_at) == (begun.trajectory_id, begun.created_at)
    assert stored.spans[0] == begun.spans[0]
    assert stored.metadata == {"app": "x", "round": 2}
    assert [group.rewards_G for group in groups(load(tmp_path))] == [(1.0,)]


def test_resume_in_another_process_reaches_the_same_store(client: openai.OpenAI, tmp_path: Path) -> None:
    with r3agent.trace(out=tmp_path) as episode:
        say(client)
    script = (
        "import sys, r3agent\n"
        "with r3agent.trace(resume=sys.argv[2], out=sys.argv[1]) as episode:\n"
        "    episode.verdict(score=0.5)\n"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path, episode.trajectory.trajectory_id], check=True)
    [stored] = load(tmp_path)
    assert stored.spans[0].verdict == r3agent.Verdict(passed=False, score=0.5)


def test_the_store_has_the_last_state_in_any_order_of_shards(client: openai.OpenAI) -> None:
    with r3agent.trace() as episode:
        say(client)
    failed = episode.trajectory.changed(error=EpisodeError(kind="ZeroDivisionError", message=""))
    with r3agent.trace(resume=failed) as again:
        say(client, WHY)
    unjudged = again.trajectory
    assert unjudged.error is None
    ended = later(client, unjudged)
    for order in itertools.permutations([failed, unjudged, ended]):
        assert latest(order) == [ended]


def test_resume_of_what_is_not_kept_does_not_break_the_application(
    client: openai.OpenAI, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Recorder(tmp_path, sample_rate=0) as recorder:
        with r3agent.trace(recorder=recorder) as episode:
            say(client)
        with r3agent.trace(resume=episode.trajectory.trajectory_id, recorder=recorder) as again:
            again.verdict(episode.answer.span_id, passed=False)
            with again.span("reflect", parent=episode.answer.span_id):
                say(client, WHY)
        assert recorder.counts.recorded == 0
    assert "goes on without a record" in caplog.text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"resume": "abc"}, "pass out= or recorder="),
        ({"resume": "abc", "out": "store"}, "not among"),
        ({"resume": {"trajectory_id": "abc"}}, "resume is no trajectory"),
        ({"resume": 3}, "resume = 3"),
        ({"resume": "abc", "task": {"messages": ASK}}, "leave `task` out"),
    ],
)
def test_resume_of_something_else_is_refused(
    given: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("store").mkdir()
    with pytest.raises(ConfigError, match=message):
        r3agent.trace(**given)


def test_an_interrupt_of_langgraph_is_no_error(client: openai.OpenAI, tmp_path: Path) -> None:
    def node(state: dict[str, Any]) -> dict[str, Any]:
        with r3agent.trace(resume=state.get("tree"), out=tmp_path) as episode:
            if "tree" not in state:
                say(client)
                return {"tree": episode.trajectory.model_dump(mode="json")}
            episode.verdict(passed=interrupt("right?"))
        return {}

    builder: Any = StateGraph(cast(Any, dict))
    builder.add_node("ask", node)
    builder.add_node("judge", node)
    builder.add_edge(START, "ask")
    builder.add_edge("ask", "judge")
    graph = builder.compile(checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "1"}}
    graph.invoke({}, thread)
    assert load(tmp_path)[0].error is None
    graph.invoke(Command(resume=True), thread)
    [stored] = load(tmp_path)
    assert (stored.passed, stored.error) == (True, None)


def test_a_trace_within_another_names_it(client: openai.OpenAI, caplog: pytest.LogCaptureFixture) -> None:
    with r3agent.trace() as outer:
        with r3agent.trace(metadata={"app": "x"}) as inner:
            say(client)
        with r3agent.trace():
            say(client)
        say(client)
    assert inner.trajectory.metadata == {"app": "x", OUTER: outer.trajectory.trajectory_id}
    assert OUTER not in outer.trajectory.metadata
    with r3agent.trace(), r3agent.trace():
        say(client)
    assert not caplog.messages
