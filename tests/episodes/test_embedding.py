"""The graph as a part of other LangGraph applications."""

from __future__ import annotations

from typing import Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, HumanMessage, convert_to_openai_messages
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_store
from langgraph.errors import GraphRecursionError
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.store.memory import InMemoryStore

from r3agent import Task, build_graph
from r3agent.testing import ScriptedPolicy
from tests.episodes.episodes import CHAIN, FAILS_ONCE, INPUT, TASK, labels, on_thread, right, tree


def graph(script: Any = FAILS_ONCE, **limits: Any) -> Any:
    return build_graph(policy=ScriptedPolicy(script), verifier=right, **limits)


@pytest.fixture(params=["invoke", "ainvoke"])
def run(request: pytest.FixtureRequest) -> Any:
    async def runs(app: Any, *args: Any) -> Any:
        return app.invoke(*args) if request.param == "invoke" else await app.ainvoke(*args)

    return runs


async def test_alone_it_takes_a_task_of_nothing_but_messages(run: Any) -> None:
    output = await run(graph().compile(), {"task": {"messages": list(TASK.messages)}})
    assert (output["answer"], output["passed"], labels(output)) == ("right", True, CHAIN)


async def test_a_batch_is_as_many_episodes(run: Any) -> None:
    app = graph().compile()
    tasks = [{"task": {"id": str(i), "messages": list(TASK.messages)}} for i in range(8)]
    outputs = [*app.batch(tasks), *await app.abatch(tasks)]
    assert [tree(output).task.id for output in outputs] == [str(i) for i in range(8)] * 2
    assert [labels(output) for output in outputs] == [CHAIN] * 16
    assert len({span.span_id for output in outputs for span in tree(output).spans}) == 16 * 3


class Shared(TypedDict):
    task: dict[str, Any]
    answer: str
    passed: bool
    trajectory: dict[str, Any]


async def test_as_a_node_it_shares_the_state_of_its_parent(run: Any) -> None:
    parent = StateGraph(Shared)
    parent.add_node("solve", graph().compile())
    parent.add_edge(START, "solve")
    output = await run(parent.compile(), INPUT)
    assert output.keys() == {"task", "answer", "passed", "trajectory"}
    assert (output["answer"], labels(output)) == ("right", CHAIN)


class Other(TypedDict):
    question: str
    reply: str
    record: dict[str, Any]


async def test_a_node_calls_it_where_the_state_is_another(run: Any) -> None:
    solver = graph().compile()

    def solve(state: Other) -> dict[str, Any]:
        output = solver.invoke({"task": {"messages": [{"role": "user", "content": state["question"]}]}})
        return {"reply": output["answer"], "record": output["trajectory"]}

    parent = StateGraph(Other)
    parent.add_node("solve", solve)
    parent.add_edge(START, "solve")
    output = await run(parent.compile(checkpointer=InMemorySaver()), {"question": "2 + 2?"}, on_thread())
    assert (output["reply"], labels({"trajectory": output["record"]})) == ("right", CHAIN)


async def test_a_chat_application_gives_its_messages_and_takes_one(run: Any) -> None:
    solver = graph().compile()

    def solve(state: MessagesState) -> Any:
        output = solver.invoke({"task": {"messages": convert_to_openai_messages(state["messages"])}})
        return {"messages": [AIMessage(output["answer"])]}

    chat = StateGraph(MessagesState)
    chat.add_node("solve", solve)
    chat.add_edge(START, "solve")
    app = chat.compile(checkpointer=InMemorySaver())
    for turns in (1, 2):
        state = await run(app, {"messages": [HumanMessage("2 + 2?")]}, on_thread())
        assert [m.type for m in state["messages"]] == ["human", "ai"] * turns
        assert state["messages"][-1].content == "right"


async def test_a_verifier_reads_the_store_of_the_application(run: Any) -> None:
    def known(task: Task, answer: str) -> bool:
        found = get_store().get(("answers",), task.id)
        return found is not None and answer == found.value["is"]

    store = InMemoryStore()
    store.put(("answers",), "t", {"is": "right"})
    app = build_graph(policy=ScriptedPolicy(FAILS_ONCE), verifier=known).compile(store=store)
    output = await run(app, INPUT)
    assert (output["passed"], labels(output)) == (True, CHAIN)


async def test_a_recursion_limit_ends_a_run_that_a_larger_one_takes_up(run: Any) -> None:
    policy = ScriptedPolicy("wrong")
    app = build_graph(policy=policy, verifier=right, max_attempts=4).compile(checkpointer=InMemorySaver())
    with pytest.raises(GraphRecursionError):
        await run(app, INPUT, on_thread(recursion_limit=4))
    output = await run(app, None, on_thread(recursion_limit=3 * 4 - 1))  # three steps for each try but the first's two
    assert labels(output) == ["attempt", *["reflect", "retry"] * 3]
    assert len(policy.calls) == 7


async def test_several_graphs_in_one_parent_keep_apart(run: Any) -> None:
    parent = StateGraph(Shared)
    parent.add_node("first", graph().compile())
    parent.add_node("second", graph("wrong", max_attempts=3).compile())
    parent.add_edge(START, "first")
    parent.add_edge("first", "second")
    output = await run(parent.compile(checkpointer=InMemorySaver()), INPUT, on_thread())
    assert labels(output) == ["attempt", "reflect", "retry", "reflect", "retry"]
    assert output["answer"] == "wrong"
