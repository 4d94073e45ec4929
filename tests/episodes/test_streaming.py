"""Every way LangGraph streams: steps always, tokens from a graph that is built with `stream=True`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, TypedDict

import pytest
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, convert_to_openai_messages
from langchain_core.outputs import LLMResult
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

from r3agent import ConfigError, EndpointError, Trajectory, build_graph
from r3agent.testing import ScriptedEndpoint, ScriptedPolicy
from tests.episodes.episodes import CHAIN, FAILS_ONCE, INPUT, labels, on_thread, policy_at, right, tree

BRANCHES: Any = {"reflections": 2, "retries": 2, "blind_retries": 1}
SCRIPT: Any = {
    "attempt": "so 5",
    "reflect": ["I took it to be 3", "it is even"],
    "retry": ["not 4", "still 5", "even so 6", "or 8"],
    "blind_retry": "maybe 7",
}
EXPERIMENTAL = pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")


def graph(script: Any = SCRIPT, *, checkpointer: Any = None, **limits: Any) -> Any:
    built = build_graph(policy=ScriptedPolicy(script), verifier=right, stream=True, **limits)
    return built.compile(checkpointer=checkpointer)


async def listed(chunks: Iterator[Any] | AsyncIterator[Any]) -> list[Any]:
    return [chunk async for chunk in chunks] if isinstance(chunks, AsyncIterator) else list(chunks)


@pytest.fixture(params=["stream", "astream"])
def stream(request: pytest.FixtureRequest) -> Any:
    """Ways to stream a graph, sync and async."""
    return lambda app, *args, **settings: listed(getattr(app, request.param)(*args, **settings))


def together(pieces: Iterable[tuple[str, str]]) -> dict[str, str]:
    whole: dict[str, str] = defaultdict(str)
    for span_id, piece in pieces:
        whole[span_id] += piece
    return dict(whole)


def texts(trajectory: Trajectory) -> dict[str, str]:
    return {span.span_id: span.text for span in trajectory.spans}


# ---- steps ----


async def test_values_and_updates_have_every_span_once(stream: Any) -> None:
    modes = ["values", "updates"]
    chunks = await stream(graph(FAILS_ONCE), INPUT, stream_mode=modes)
    updates = [update for mode, update in chunks if mode == "updates"]
    assert [node for update in updates for node in update] == ["attempt", "verify", "reflect", "retry", "verify"]
    values = [value for mode, value in chunks if mode == "values"]
    assert [len(value.get("spans", ())) for value in values] == [0, 1, 1, 2, 3, 3]
    assert labels(values[-1]) == CHAIN


async def test_on_a_thread_a_step_of_several_requests_shows_each_answer_besides(stream: Any) -> None:
    app = graph(**BRANCHES, checkpointer=InMemorySaver())
    updates = await stream(app, INPUT, on_thread(), stream_mode="updates")
    named = [name for update in updates for name in update]
    assert named == ["attempt", "verify", "reflect", *["sample"] * 3, "retry", "verify"]
    drawn = [span["span_id"] for update in updates for span in update.get("sample", {}).get("drawn", ())]
    grown = [span["span_id"] for update in updates for span in update.get("retry", {}).get("spans", ())]
    assert sorted(drawn) == sorted(grown)
    assert len(set(grown)) == 5


# ---- tokens ----


@pytest.mark.parametrize("is_kept", [False, True])
async def test_custom_has_each_piece_with_its_place_in_the_tree(stream: Any, is_kept: bool) -> None:
    app = graph(**BRANCHES, checkpointer=InMemorySaver() if is_kept else None)
    chunks = await stream(app, INPUT, on_thread(), stream_mode=["custom", "values"])
    deltas = [chunk for mode, chunk in chunks if mode == "custom"]
    trajectory = tree([chunk for mode, chunk in chunks if mode == "values"][-1])
    assert together((d["span_id"], d["delta"]) for d in deltas) == texts(trajectory)
    assert {(d["span_id"], d["parent_id"], d["label"]) for d in deltas} == {
        (span.span_id, span.parent_id, span.label) for span in trajectory.spans
    }
    assert [d["choice"] for d in deltas if d["label"] == "reflect"] == [0] * 6 + [1] * 3
    assert len(deltas) > len(trajectory.spans)


async def test_messages_have_each_token_with_its_place_in_the_tree(stream: Any) -> None:
    chunks = await stream(graph(**BRANCHES), INPUT, stream_mode=["messages", "values"])
    trajectory = tree([chunk for mode, chunk in chunks if mode == "values"][-1])
    messages = [chunk for mode, chunk in chunks if mode == "messages"]
    assert together((message.id, message.content) for message, _ in messages) == texts(trajectory)
    assert all(isinstance(message, AIMessageChunk) for message, _ in messages)
    assert {(m["span_id"], m["parent_id"], m["label"]) for _, m in messages} == {
        (span.span_id, span.parent_id, span.label) for span in trajectory.spans
    }


async def test_events_have_a_model_run_for_each_span() -> None:
    events = [event async for event in graph(**BRANCHES).astream_events(INPUT, version="v2")]
    trajectory = tree(events[-1]["data"]["output"])
    by_kind = defaultdict[str, list[Any]](list)
    for event in events:
        by_kind[event["event"]].append(event)
    tokens = by_kind["on_chat_model_stream"]
    assert together((e["metadata"]["span_id"], e["data"]["chunk"].content) for e in tokens) == texts(trajectory)
    for kind in ("on_chat_model_start", "on_chat_model_end"):
        assert sorted(e["name"] for e in by_kind[kind]) == sorted(span.label for span in trajectory.spans)
    asked = by_kind["on_chat_model_start"][0]["data"]["input"]["messages"]
    assert [[(m.type, m.content) for m in messages] for messages in asked] == [[("human", "2 + 2?")]]


@EXPERIMENTAL
async def test_event_streaming_has_a_message_for_each_span() -> None:
    run = await graph(**BRANCHES).astream_events(INPUT, version="v3")
    heard: dict[str, str] = {}
    async for event in run:
        if event["method"] == "messages":
            data, metadata = event["params"]["data"]
            text = data.get("delta", {}).get("text", "")
            heard[metadata["span_id"]] = heard.get(metadata["span_id"], "") + text
    assert heard == texts(tree(await run.output()))


@EXPERIMENTAL
def test_event_streaming_in_sync() -> None:
    run = graph(FAILS_ONCE).stream_events(INPUT, version="v3")
    assert [str(message.text) for message in run.messages] == ["wrong", "think of sums", "right"]
    assert labels(run.output) == CHAIN


# ---- inside an application ----


async def test_a_chat_application_hears_the_answer_once() -> None:
    solver = graph(FAILS_ONCE)

    async def solve(state: MessagesState) -> Any:
        output = await solver.ainvoke({"task": {"messages": convert_to_openai_messages(state["messages"])}})
        answer = Trajectory.model_validate(output["trajectory"]).answer
        assert answer is not None
        return {"messages": [AIMessage(answer.text, id=answer.span_id)]}

    chat = StateGraph(MessagesState)
    chat.add_node("solve", solve)
    chat.add_edge(START, "solve")
    app = chat.compile(checkpointer=InMemorySaver())
    chunks = await listed(
        app.astream({"messages": [HumanMessage("2 + 2?")]}, on_thread(), stream_mode="messages", subgraphs=True)
    )
    heard = [message.content for _, (message, _) in chunks if message.content]
    assert heard == ["wrong", "think ", "of ", "sums", "right"]


class Parent(TypedDict):
    task: dict[str, Any]
    trajectory: dict[str, Any]


@pytest.mark.parametrize("mode", ["custom", "messages"])
async def test_as_a_node_it_tells_those_who_listen_to_subgraphs(stream: Any, mode: str) -> None:
    parent = StateGraph(Parent)
    parent.add_node("solve", graph(FAILS_ONCE))
    parent.add_edge(START, "solve")
    chunks = await stream(parent.compile(), INPUT, stream_mode=[mode, "values"], subgraphs=True)
    pieces = [
        (chunk["label"], chunk["delta"]) if mode == "custom" else (chunk[1]["label"], chunk[0].content)
        for namespace, kind, chunk in chunks
        if kind == mode and namespace[0].startswith("solve:")
    ]
    assert together(pieces) == {"attempt": "wrong", "reflect": "think of sums", "retry": "right"}
    assert labels(chunks[-1][2]) == CHAIN


# ---- over HTTP ----


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_streamed_record_is_the_same(streamed: bool) -> None:
    def answer(body: dict[str, Any], choice: int) -> str:
        return f"{len(body['messages'])} messages, choice {choice}"

    with ScriptedEndpoint(answer) as endpoint:
        async with policy_at(endpoint) as policy:
            app = build_graph(policy=policy, verifier=right, reflections=2, stream=streamed).compile()
            chunks = await listed(app.astream(INPUT, stream_mode=["custom", "values"]))
        assert [body.get("stream", False) for body, _ in endpoint.received] == [streamed] * 4
    trajectory = tree(chunks[-1][1])
    assert [span.text for span in trajectory.spans] == [
        "1 messages, choice 0",
        "3 messages, choice 0",
        "3 messages, choice 1",
        "5 messages, choice 0",
        "5 messages, choice 0",
    ]
    assert {span.capability for span in trajectory.spans} == {"trainable-exact"}
    heard = together((chunk["span_id"], chunk["delta"]) for mode, chunk in chunks if mode == "custom")
    assert heard == (texts(trajectory) if streamed else {})


async def test_tool_calls_come_with_the_last_chunk() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
    with ScriptedEndpoint({"role": "assistant", "content": None, "tool_calls": [call]}) as endpoint:
        async with policy_at(endpoint) as policy:
            app = build_graph(policy=policy, verifier=right, max_attempts=1, stream=True).compile()
            chunks = await listed(app.astream(INPUT, stream_mode="messages"))
    [(message, _)] = chunks
    assert [(c["id"], c["name"], c["args"]) for c in message.tool_calls] == [("c1", "add", {"a": 2})]


async def test_an_error_is_the_same_error(stream: Any) -> None:
    with pytest.raises(EndpointError, match="down"):
        await stream(graph(EndpointError("down")), INPUT, stream_mode="messages")


def test_a_policy_that_cannot_stream_is_refused() -> None:
    class Mute:
        async def sample(self, messages: Any, *, n: int = 1, tools: Any = (), sampling: Any = None) -> Any: ...

        async def aclose(self) -> None: ...

    with pytest.raises(ConfigError, match=r"stream = True: Mute\.sample takes no on_delta"):
        build_graph(policy=Mute(), verifier=right, stream=True)


@pytest.mark.parametrize("streams", [True, False])
async def test_callbacks_have_the_usage_of_each_span(streams: bool) -> None:
    ends: list[LLMResult] = []

    class Tracer(AsyncCallbackHandler):
        async def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
            ends.append(response)

    with ScriptedEndpoint(lambda body, i: "4" if len(body["messages"]) > 3 else "5") as endpoint:
        async with policy_at(endpoint) as policy:
            app = build_graph(policy=policy, verifier=right, stream=streams).compile()
            heard = [c async for c in app.astream(INPUT, {"callbacks": [Tracer()]}, stream_mode="messages")]
            result = await app.ainvoke(INPUT, {"callbacks": [Tracer()]})
    messages: list[Any] = [end.generations[0][0].message for end in ends]  # pyright: ignore[reportAttributeAccessIssue]
    spans = tree(result).spans
    assert len(messages) == 2 * len(spans)
    for message, span in zip(messages[len(spans) :], spans, strict=True):
        assert message.id == span.span_id
        assert message.text == span.text
        assert message.usage_metadata["input_tokens"] == span.prompt_tokens
        assert message.usage_metadata["output_tokens"] == span.completion_tokens
    assert bool(heard) is streams
