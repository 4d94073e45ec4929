"""Spans of the tools of agents that people bring: timed where they are seen to run, and else where their result is."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import openai
import pytest
from langchain.agents import create_agent
from langchain_core.messages import ToolMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import ToolException, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

import r3agent
from r3agent import build_graph, collect, load
from r3agent.episodes.agents.program import Program
from r3agent.errors import R3Error
from r3agent.testing import ScriptedEndpoint
from tests.episodes.agents.endpoints import TASK, chat, found, looking, model, policy_at
from tests.support.exported import Exported, has, id_of

TIMED, TRAJECTORY, CALL = "r3agent.tool.timed", "r3agent.trajectory.id", "gen_ai.tool.call.id"
ON_THREAD: Any = {"configurable": {"thread_id": "1"}}


@tool
def look(key: str) -> str:
    """Look into a box."""
    with trace.get_tracer("app").start_as_current_span("inside"):
        return "a ball"


@tool("look")
def fail(key: str) -> str:
    """Look into a box that does not open."""
    raise ToolException("it does not open")


@tool("look")
def ask(key: str) -> str:
    """Ask a person to look into a box."""
    return interrupt(f"what is in {key}?")


def tools(exported: Exported) -> list[ReadableSpan]:
    return exported.named("execute_tool look")


async def collected(agent: Any, endpoint: ScriptedEndpoint, out: Path, task: Any = TASK["task"]) -> Any:
    async with policy_at(endpoint) as policy:
        await collect([task], policy=policy, verifier=found, out=out, agent=agent, reflections=2)
    [stored] = load(out)
    return stored


@pytest.mark.parametrize("is_sync", [False, True])
async def test_langchain_tools_are_spans_with_their_times(exported: Exported, is_sync: bool) -> None:
    with ScriptedEndpoint(model) as endpoint:
        async with policy_at(endpoint) as policy:
            built = build_graph(policy=policy, verifier=found, agent=create_agent(chat(endpoint), [look]))
            graph = built.compile(checkpointer=InMemorySaver())
            with trace.get_tracer("app").start_as_current_span("request") as request:
                run = asyncio.to_thread(graph.invoke, TASK, ON_THREAD) if is_sync else graph.ainvoke(TASK, ON_THREAD)
                output = await run
    assert output["passed"]
    spans, inside = tools(exported), exported.named("inside")
    assert len(spans) == len(inside) == len(output["trajectory"]["spans"]) // 2
    for one, own in zip(spans, inside, strict=True):
        assert {name: has(one).get(name) for name in (CALL, TIMED)} == {CALL: "c1", TIMED: None}
        assert one.parent is not None
        assert one.parent.span_id == request.get_span_context().span_id
        times = [one.start_time or 0, own.start_time or 0, own.end_time or 0, one.end_time or 0]
        assert times == sorted(times)
    assert not any("a ball" in str(has(one)) for one in exported.spans)


async def test_tools_of_an_agent_are_spans_of_the_trajectory(exported: Exported, tmp_path: Path) -> None:
    with ScriptedEndpoint(model) as endpoint:
        stored = await collected(create_agent(chat(endpoint), [look]), endpoint, tmp_path)
    spans = tools(exported)
    assert len(spans) == sum(bool(span.tool_calls) for span in stored.spans) == 3
    assert {has(one)[TRAJECTORY] for one in spans} == {stored.trajectory_id}
    assert {one.parent and one.parent.span_id for one in spans} == {id_of(exported.one("invoke_agent"))}


@pytest.mark.parametrize("is_handled", [False, True])
async def test_tool_that_fails_is_a_failed_span(exported: Exported, tmp_path: Path, is_handled: bool) -> None:
    given = fail.model_copy(update={"handle_tool_error": is_handled})
    with ScriptedEndpoint(model) as endpoint, nullcontext() if is_handled else pytest.raises(R3Error):
        await collected(create_agent(chat(endpoint), [given]), endpoint, tmp_path)
    spans = tools(exported)
    assert len(spans) == (3 if is_handled else 1)
    assert {one.status.status_code for one in spans} == {StatusCode.ERROR}
    assert {has(one)["error.type"] for one in spans} == {"tool_error" if is_handled else "ToolException"}


async def test_tool_that_interrupts_is_no_failed_span(exported: Exported) -> None:
    with ScriptedEndpoint(model) as endpoint:
        async with policy_at(endpoint) as policy:
            built = build_graph(
                policy=policy, verifier=found, agent=create_agent(chat(endpoint), [ask]), max_attempts=1
            )
            graph = built.compile(checkpointer=InMemorySaver())
            await graph.ainvoke(TASK, ON_THREAD)
            await graph.ainvoke(Command(resume="a doll"), ON_THREAD)
    assert [one.status.status_code for one in tools(exported)] == [StatusCode.UNSET] * 2  # it ran twice
    assert not any(TIMED in has(one) for one in tools(exported))


@pytest.mark.parametrize("how", ["call", "arguments", "function"])
async def test_tool_of_a_runnable_has_one_span(exported: Exported, tmp_path: Path, how: str) -> None:
    def result(call: Any) -> ToolMessage:
        if how == "call":
            return look.invoke(call)
        text = look.invoke(call["args"]) if how == "arguments" else "a ball"
        return ToolMessage(text, tool_call_id=call["id"])

    with ScriptedEndpoint(model) as endpoint:
        asked = chat(endpoint).bind_tools([look])

        async def run(messages: Any) -> Any:
            said = await asked.ainvoke(messages)
            return await asked.ainvoke([*messages, said, *map(result, said.tool_calls)])

        def typed(messages: list[Any]) -> Any: ...

        stored = await collected(RunnableLambda(typed, run), endpoint, tmp_path)
    assert [has(one).get(TIMED) for one in tools(exported)] == [None if how != "function" else False] * 3
    assert {has(one)[TRAJECTORY] for one in tools(exported)} == {stored.trajectory_id}


def result_of(call: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call.id, "content": "a private ball"}


DEFINED = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]


async def calls_tools(messages: Any, client: openai.AsyncOpenAI) -> Any:
    for _ in range(2):
        answer = await client.chat.completions.create(model="policy", messages=messages, tools=DEFINED)  # pyright: ignore
        said = answer.choices[0].message
        if not said.tool_calls:
            return said
        messages = [*messages, said.model_dump(exclude_none=True), *map(result_of, said.tool_calls)]
        for _ in range(2):  # the same request again: its results are the same
            answer = await client.chat.completions.create(model="policy", messages=messages, tools=DEFINED)
    return answer.choices[0].message


PROGRAM = f"""
import json, os, urllib.request
def ask(messages):
    body = json.dumps({{"model": "policy", "messages": messages, "tools": {DEFINED!r}}}).encode()
    request = urllib.request.Request(
        os.environ["OPENAI_BASE_URL"] + "/chat/completions", body, {{"Content-Type": "application/json"}}
    )
    return json.load(urllib.request.urlopen(request))["choices"][0]["message"]
messages = json.load(open(os.environ["R3_TASK_FILE"]))["messages"]
said = ask(messages)
results = [{{"role": "tool", "tool_call_id": c["id"], "content": "a private ball"}} for c in said["tool_calls"]]
print(ask([*messages, said, *results])["content"])
"""


@pytest.mark.parametrize("kind", ["function", "program"])
async def test_tool_whose_result_alone_is_seen_has_no_time(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
    agent: Any = calls_tools if kind == "function" else Program([sys.executable, "-c", PROGRAM])
    before = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": "", **looking("k")},
        {"role": "tool", "tool_call_id": "c1", "content": "nothing"},
    ]

    def answer(body: Any, i: int) -> Any:
        return looking("k") if body.get("tools") and body["messages"][-1]["content"] != "a private ball" else "hm"

    with ScriptedEndpoint(answer) as endpoint:
        stored = await collected(agent, endpoint, tmp_path, {"id": "t", "messages": before})
        if isinstance(agent, Program):
            agent.close()
    spans = tools(exported)
    assert len(stored.tries) == 3
    assert len(spans) == sum(len(span.tool_calls) for span in stored.spans) == 3  # and none of the task's own
    for one in spans:
        assert one.start_time == one.end_time
        assert (has(one)[TIMED], has(one)[CALL], has(one)[TRAJECTORY]) == (False, "c1", stored.trajectory_id)
        assert has(one)["gen_ai.tool.call.result"] == "a private ball"
        assert json.loads(has(one)["gen_ai.tool.call.arguments"]) == {"key": "k"}


def test_tools_of_an_application_are_spans_of_its_trace(exported: Exported, tmp_path: Path) -> None:
    calls = [{**looking(key)["tool_calls"][0], "id": key} for key in ("k1", "k2", "k3")]
    with ScriptedEndpoint(lambda body, i: {"content": "", "tool_calls": calls} if i == 0 else "done") as server:
        client = r3agent.instrument(openai.OpenAI(base_url=server.url, api_key="-", max_retries=0))

        def answer(messages: Any) -> Any:
            return client.chat.completions.create(model="scripted", messages=messages).choices[0].message

        with r3agent.trace(out=tmp_path):
            said = answer([{"role": "user", "content": "?"}])
            again = said.model_dump(exclude_none=True)
            for i, own in enumerate(("a", "b")):  # an application's own ids, and one call that it does not run
                again["tool_calls"][i]["id"] = own
            results = [{"role": "tool", "tool_call_id": own, "content": "x"} for own in ("b", "a")]
            answer([{"role": "user", "content": "?"}, again, *results])
    assert [(has(one)[CALL], has(one)[TIMED]) for one in tools(exported)] == [("b", False), ("a", False)]
    assert {one.parent and one.parent.span_id for one in tools(exported)} == {id_of(exported.one("invoke_agent"))}
