"""Runnables as agents: a subgraph of the nodes that make tries, recorded step by step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.tools import ToolRuntime
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.runtime import get_runtime
from langgraph.types import Command, interrupt
from pydantic import BaseModel

from r3agent import ConfigError, build_graph
from r3agent.records.credit import groups
from r3agent.testing import ScriptedEndpoint, ScriptedPolicy
from tests.episodes.agents.endpoints import HINT, TASK, chat, found, looking, model, policy_at, steps, trajectory

TRY = ["look", "a ball"]
ON_THREAD: Any = {"configurable": {"thread_id": "1"}}


@tool
def look(key: str, runtime: ToolRuntime[Any, Any]) -> str:
    """Look into a box."""
    config: Any = runtime.config
    return str(config["configurable"]["environment"][key])


@tool("look")
def ask(key: str) -> str:
    """Ask a person to look into a box."""
    return interrupt(f"what is in {key}?")


@asynccontextmanager
async def boxes(task: Any) -> AsyncGenerator[Any]:
    yield {"k": "a ball"}


async def test_create_agent_learns_from_its_failed_try() -> None:
    with ScriptedEndpoint(model) as endpoint:
        async with policy_at(endpoint) as policy:
            agent = create_agent(chat(endpoint), [look], system_prompt="Be brief.")
            built = build_graph(policy=policy, verifier=found, agent=agent, environment=boxes)
            output = await built.compile().ainvoke(TASK)
    record = trajectory(output)
    assert steps(output) == [["look", "nothing"], TRY]
    assert output["passed"]
    assert [span.capability for span in record.spans] == ["trainable-exact"] * 5
    first, second, reflection, retry, _ = record.spans
    assert [record.parent(span) for span in record.spans] == [None, first, second, reflection, retry]
    asked = [(m["role"], m.get("content")) for m in record.prompt(record.spans[-1])]
    assert asked[:5] == [
        ("system", "Be brief."),
        ("user", "What is in box k?"),
        ("assistant", ""),
        ("tool", "a ball"),
        ("assistant", "nothing"),
    ]
    assert asked[6] == ("assistant", HINT)
    assert asked[-1] == ("tool", "a ball")
    bodies = [received.body for received in endpoint.received]
    assert {(body["model"], body["max_tokens"]) for body in bodies} == {("scripted", 99)}
    assert len({body["seed"] for body in bodies}) == 5
    assert {received.authorization for received in endpoint.received} == {"Bearer sk-policy1"}


@pytest.mark.parametrize("is_sync", [False, True])
async def test_branches_are_siblings_with_exact_tokens(is_sync: bool) -> None:
    with ScriptedEndpoint(model) as endpoint:
        async with policy_at(endpoint) as policy:
            agent = create_agent(chat(endpoint), [look])
            built = build_graph(
                policy=policy,
                verifier=found,
                agent=agent,
                environment=boxes,
                reflections=3,
                retries=2,
            )
            graph = built.compile(checkpointer=InMemorySaver())
            run = asyncio.to_thread(graph.invoke, TASK, ON_THREAD) if is_sync else graph.ainvoke(TASK, ON_THREAD)
            output = await run
    assert steps(output) == [["look", "nothing"], *[TRY] * 6]
    assert all(span.capability == "trainable-exact" and span.token_ids for span in trajectory(output).spans)
    record = trajectory(output)
    assert [len(group.spans_G) for group in groups([record], "reflect")] == [3]
    assert [len(group.spans_G) for group in groups([record], "retry")] == [2, 2, 2]
    seeds = [received.body["seed"] for received in endpoint.received if received.body.get("tools")]
    assert len(set(seeds)) == len(seeds) == 14


async def test_agent_is_a_subgraph_in_streams_and_drawing() -> None:
    with ScriptedEndpoint(model) as endpoint:
        async with policy_at(endpoint) as policy:
            agent = create_agent(chat(endpoint), [look])
            built = build_graph(policy=policy, verifier=found, agent=agent, environment=boxes, max_attempts=1)
            graph = built.compile(checkpointer=InMemorySaver())
            streamed: Any = [
                (namespace, kind, chunk)
                async for namespace, kind, chunk in graph.astream(
                    TASK, ON_THREAD, stream_mode=["messages", "updates"], subgraphs=True
                )
            ]
            output = (await graph.aget_state(ON_THREAD)).values
            events: Any = graph.astream_events(TASK, {"configurable": {"thread_id": "events"}}, version="v2")
            kinds = {(event["event"], event["name"]) async for event in events}
    assert {("on_chain_start", "attempt"), ("on_chat_model_start", "ChatOpenAI"), ("on_tool_end", "look")} <= kinds
    nodes = [next(iter(chunk)) for namespace, kind, chunk in streamed if kind == "updates" and namespace]
    assert nodes == ["model", "tools", "model"]
    assert "nothing" in [chunk[0].content for _, kind, chunk in streamed if kind == "messages"]
    assert trajectory(output).spans[-1].capability == "trainable-exact"  # although it was streamed
    assert {"attempt", "verify", "reflect", "retry"} <= set(graph.get_graph().nodes)
    assert "attempt:tools" in graph.get_graph(xray=True).nodes


async def test_interrupted_tries_go_on_where_they_were(tmp_path: Path) -> None:
    with ScriptedEndpoint(model) as endpoint:
        async with policy_at(endpoint) as policy, AsyncSqliteSaver.from_conn_string(str(tmp_path / "db")) as saver:
            agent = create_agent(chat(endpoint), [ask])
            built = build_graph(policy=policy, verifier=found, agent=agent, reflections=2)
            graph = built.compile(checkpointer=saver)
            assert len((await graph.ainvoke(TASK, ON_THREAD))["__interrupt__"]) == 1
            waiting: Any = (await graph.aget_state(ON_THREAD, subgraphs=True)).tasks[0].state
            assert waiting.next == ("tools",)
            asked = (await graph.ainvoke(Command(resume="a doll"), ON_THREAD))["__interrupt__"]
            assert len(asked) == 2  # both retries wait, and neither was cancelled
            answers = {one.id: text for one, text in zip(asked, ("a ball", "a doll"), strict=True)}
            output = await graph.ainvoke(Command(resume=answers), ON_THREAD)
    assert steps(output) == [["look", "nothing"], TRY, ["look", "a doll"]]
    assert len(endpoint.received) == 7  # no call was repeated
    assert len({received.body["seed"] for received in endpoint.received}) == 7
    assert all(span.capability == "trainable-exact" for span in trajectory(output).spans)


def test_invoke_with_a_sync_checkpointer_resumes_too(tmp_path: Path) -> None:
    async def run() -> Any:
        with ScriptedEndpoint(model) as endpoint, SqliteSaver.from_conn_string(str(tmp_path / "db")) as saver:
            async with policy_at(endpoint) as policy:
                agent = create_agent(chat(endpoint), [ask])
                built = build_graph(policy=policy, verifier=found, agent=agent)
                graph = built.compile(checkpointer=saver)
                for given in (TASK, Command(resume="a doll")):
                    assert "__interrupt__" in await asyncio.to_thread(graph.invoke, given, ON_THREAD)
                return await asyncio.to_thread(graph.invoke, Command(resume="a ball"), ON_THREAD)

    assert steps(asyncio.run(run())) == [["look", "nothing"], TRY]


async def test_try_resumed_elsewhere_says_that_steps_are_lost() -> None:
    with ScriptedEndpoint(model) as endpoint:
        async with policy_at(endpoint) as policy:
            saver, agent = InMemorySaver(), create_agent(chat(endpoint), [ask])

            def graph() -> Any:  # as another process builds it
                return build_graph(policy=policy, verifier=found, agent=agent, max_attempts=1).compile(saver)

            await graph().ainvoke(TASK, ON_THREAD)
            output = await graph().ainvoke(Command(resume="a ball"), ON_THREAD)
    assert steps(output) == [["nothing"]]
    assert "another process" in str(trajectory(output).spans[0].capability_note)


async def test_node_that_runs_anew_leaves_no_repeated_step() -> None:
    async def think(state: MessagesState) -> Any:
        answer = await llm.ainvoke(state["messages"])
        interrupt("go on?")
        return {"messages": [answer]}

    with ScriptedEndpoint("a ball") as endpoint:
        llm = chat(endpoint)
        built = StateGraph(MessagesState).add_node("first", think).add_node("second", think)
        agent = built.add_edge(START, "first").add_edge("first", "second").add_edge("second", END).compile()
        async with policy_at(endpoint) as policy:
            graph = build_graph(policy=policy, verifier=found, agent=agent).compile(InMemorySaver())
            output = await graph.ainvoke(TASK, ON_THREAD)
            while "__interrupt__" in output:
                output = await graph.ainvoke(Command(resume=True), ON_THREAD)
    assert len(endpoint.received) == 4
    assert steps(output) == [["a ball", "a ball"]]


async def test_tries_share_no_state_of_the_agent() -> None:
    seen: list[int] = []

    def count(state: MessagesState) -> Any:
        seen.append(len(state["messages"]))
        return {"messages": [AIMessage("no")]}

    built = StateGraph(MessagesState).add_node("count", count).add_edge(START, "count").add_edge("count", END)
    for checkpointer in (True, InMemorySaver()):
        seen.clear()
        agent = built.compile(checkpointer=checkpointer)
        graph = build_graph(policy=ScriptedPolicy("hm"), verifier=found, agent=agent, retries=2).compile(
            InMemorySaver()
        )
        for _ in range(2):
            await graph.ainvoke(TASK, ON_THREAD)
        assert seen == [1, 5, 5] * 2


async def test_context_store_tags_and_state_reach_the_agent() -> None:
    @dataclass
    class User:
        name: str

    class State(MessagesState):
        city: str

    got: list[Any] = []

    def node(state: State, config: RunnableConfig) -> Any:
        given: Any = config
        own: Any = get_runtime().context
        got.append((state["city"], own.name, given["tags"], given["metadata"]["team"], given["configurable"]["x"]))
        return {"messages": [AIMessage("a ball")]}

    agent = StateGraph(State, context_schema=User).add_node("n", node).add_edge(START, "n").add_edge("n", END).compile()
    graph = build_graph(policy=ScriptedPolicy("hm"), verifier=found, agent=agent).compile()
    task = {**TASK["task"], "info": {"state": {"city": "Rome"}}}
    config: Any = {"tags": ["a"], "metadata": {"team": "red"}, "configurable": {"x": 1}}
    context: Any = User("Ann")
    assert (await graph.ainvoke({"task": task}, config, context=context))["passed"]
    assert got == [("Rome", "Ann", ["a"], "red", 1)]


class Found(BaseModel):
    what: str


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ({"messages": [AIMessage("a ball")]}, "a ball"),
        ({"messages": [AIMessage([{"type": "text", "text": "a ball"}])]}, "a ball"),
        (AIMessage("a ball"), "a ball"),
        ([AIMessage("a"), AIMessage("a ball")], "a ball"),
        ("a ball", "a ball"),
        ({"messages": [], "structured_response": Found(what="ball")}, '{"what":"ball"}'),
        ({"messages": []}, ""),
    ],
)
async def test_answer_is_that_of_the_output(output: Any, answer: str) -> None:
    agent = RunnableLambda(lambda given: output)
    graph = build_graph(policy=ScriptedPolicy("hm"), verifier=found, agent=agent, max_attempts=1).compile()
    assert (await graph.ainvoke(TASK))["answer"] == answer


async def test_chat_model_alone_gets_the_list_of_messages() -> None:
    with ScriptedEndpoint(lambda body, choice: looking("k")) as endpoint:
        async with policy_at(endpoint) as policy:

            def called(task: Any, answer: Any) -> bool:
                return answer.tool_calls[0]["function"]["name"] == "look"

            agent = chat(endpoint).bind_tools([look])
            graph = build_graph(policy=policy, verifier=called, agent=agent).compile()
            assert (await graph.ainvoke(TASK))["passed"]


async def test_loop_of_an_agent_ends_at_max_steps() -> None:
    with ScriptedEndpoint(lambda body, choice: looking("k")) as endpoint:
        async with policy_at(endpoint) as policy:
            agent = create_agent(chat(endpoint), [look])
            built = build_graph(
                policy=policy, verifier=found, agent=agent, environment=boxes, max_attempts=1, max_steps=3
            )
            output = await built.compile().ainvoke(TASK)
    assert steps(output) == [["look"] * 3]
    assert output["passed"] is False
    assert "max_steps = 3" in str(trajectory(output).tries[0].verdict)


def test_graph_without_messages_is_refused() -> None:
    class Other(BaseModel):
        question: str

    agent = StateGraph(Other).add_node("n", lambda state: {}).add_edge(START, "n").add_edge("n", END)
    with pytest.raises(ConfigError, match="question and no messages"):
        build_graph(policy=ScriptedPolicy("hm"), verifier=found, agent=agent.compile())
    with pytest.raises(ConfigError, match="compile"):
        build_graph(policy=ScriptedPolicy("hm"), verifier=found, agent=agent)
