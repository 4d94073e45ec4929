"""Agents that speak other APIs, through a gateway: their SDKs' tool loops are recorded as steps with exact tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

import r3agent
from r3agent.gateway.server import Gateway
from r3agent.records.trajectory import Trajectory
from r3agent.testing import ScriptedEndpoint
from tests.gateway.stub import HEAD, event, stub, whole
from tests.support.chunked import Json, call

STEPS: list[Json] = [
    {"reasoning_content": "First a.", "content": "Two files.", "tool_calls": [call("c1", "read", '{"path": "a"}')]},
    {"content": "", "tool_calls": [call("c2", "read", '{"path":"b"}'), call("c3", "read", '{"path": "é"}')]},
    {"reasoning_content": "Enough.", "content": "a, b and é"},
]
PARAMETERS = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
TASK: Json = {"role": "user", "content": "Read the files."}


def answer(body: Json, _: int) -> Json:
    """Answer with the next step, by the number of answers in the conversation."""
    return STEPS[sum(message["role"] == "assistant" for message in body["messages"])]


def responses_agent(url: str, *, is_stream: bool) -> str:
    items: list[Any] = [TASK]
    tool = {"type": "function", "name": "read", "parameters": PARAMETERS, "strict": False}
    with openai.OpenAI(base_url=url, api_key="a-key", max_retries=0) as client:
        while True:
            ask: Any = {"model": "scripted", "input": items, "tools": [tool], "store": False}
            if is_stream:
                with client.responses.stream(**ask) as stream:
                    response: Any = stream.get_final_response()
            else:
                response = client.responses.create(**ask)
            items += response.output
            calls = [item for item in response.output if item.type == "function_call"]
            if not calls:
                return response.output_text
            for each in calls:
                output = "text of " + json.loads(each.arguments)["path"]
                items.append({"type": "function_call_output", "call_id": each.call_id, "output": output})


def remembered_agent(url: str, *, is_stream: bool) -> str:
    """Send only what is new, as clients of stored responses do."""
    new: Any = "Read the files."
    previous: Any = openai.omit
    tool: Any = {"type": "function", "name": "read", "parameters": PARAMETERS, "strict": False}
    with openai.OpenAI(base_url=url, api_key="a-key", max_retries=0) as client:
        while True:
            ask: Any = {"model": "scripted", "input": new, "tools": [tool], "previous_response_id": previous}
            if is_stream:
                (*_, last) = client.responses.create(**ask, stream=True)
                response: Any = last.response  # pyright: ignore[reportAttributeAccessIssue]
            else:
                response = client.responses.create(**ask)
            calls = [item for item in response.output if item.type == "function_call"]
            if not calls:
                return response.output_text
            previous = response.id
            new = [{"type": "function_call_output", "call_id": each.call_id, "output": "text"} for each in calls]


def messages_agent(url: str, *, is_stream: bool) -> str:
    messages: list[Any] = [TASK]
    tool = {"name": "read", "input_schema": PARAMETERS}
    with anthropic.Anthropic(base_url=url.removesuffix("/v1"), api_key="a-key", max_retries=0) as client:
        while True:
            ask: Any = {"model": "scripted", "messages": messages, "tools": [tool], "max_tokens": 1000}
            if is_stream:
                with client.messages.stream(**ask) as stream:
                    message: Any = stream.get_final_message()
            else:
                message = client.messages.create(**ask)
            messages.append({"role": "assistant", "content": message.content})
            if message.stop_reason != "tool_use":
                return next(block.text for block in message.content if block.type == "text")
            calls = [block for block in message.content if block.type == "tool_use"]
            results = [
                {"type": "tool_result", "tool_use_id": each.id, "content": "text of " + each.input["path"]}
                for each in calls
            ]
            messages.append({"role": "user", "content": results})


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("agent", [responses_agent, remembered_agent, messages_agent])
def test_tool_loop_is_recorded_as_the_steps_of_one_try(
    agent: Callable[..., str], is_stream: bool, tmp_path: Path
) -> None:
    with ScriptedEndpoint(answer) as endpoint, Gateway(endpoint.url, out=tmp_path) as gateway:
        assert agent(gateway.url_of("e"), is_stream=is_stream) == "a, b and é"
    [found] = r3agent.load(tmp_path)
    check(found)
    assert all(received.authorization == "Bearer a-key" for received in endpoint.received)
    assert [received.body.get("stream", False) for received in endpoint.received] == [is_stream] * 3


def check(found: Trajectory) -> None:
    spans = found.spans
    assert [span.capability for span in spans] == ["trainable-exact"] * 3
    assert [span.parent_id for span in spans] == [None, spans[0].span_id, spans[1].span_id]
    assert not any(span.standalone for span in spans)
    assert [span.text for span in spans] == [step["content"] for step in STEPS]
    assert [call["id"] for span in spans for call in span.tool_calls] == ["c1", "c2", "c3"]
    assert [[message["role"] for message in span.request] for span in spans] == [[], ["tool"], ["tool", "tool"]]
    (only_try,) = found.tries
    assert len(only_try.steps) == 3


def test_stream_that_breaks_off_ends_with_an_error_of_its_api(tmp_path: Path) -> None:
    def broken(_: Any) -> Iterator[bytes]:
        yield HEAD.encode() + event({"role": "assistant", "content": ""})
        yield event({"content": "It is"}, token_ids=[1], logprobs={"content": [{"token": "It is", "logprob": -1.0}]})

    with stub(broken) as upstream, Gateway(upstream.url, out=tmp_path) as gateway:
        with openai.OpenAI(base_url=gateway.url_of("e"), api_key="k", max_retries=0) as client:
            events: list[Any] = list(client.responses.create(model="m", input="?", stream=True))
        ask: Any = {"model": "m", "messages": [TASK], "max_tokens": 9}
        with (
            anthropic.Anthropic(base_url=gateway.url_of("e").removesuffix("/v1"), api_key="k", max_retries=0) as client,
            client.messages.stream(**ask) as stream,
            pytest.raises(anthropic.APIStatusError, match="ended before the completion"),
        ):
            stream.until_done()
    assert [each.sequence_number for each in events] == [*range(len(events))]
    assert (events[0].type, events[-1].type) == ("response.created", "response.failed")
    assert events[0].response.id == events[-1].response.id
    assert "ended before the completion" in events[-1].response.error.message
    [found] = r3agent.load(tmp_path)
    assert [span.capability for span in found.spans] == ["eval-only"] * 2


def test_answer_of_another_form_is_an_error_of_the_upstream(tmp_path: Path) -> None:
    with (
        stub(lambda _: iter([whole({"choices": [{"message": 7}]})])) as upstream,
        Gateway(upstream.url, out=tmp_path) as gateway,
        openai.OpenAI(base_url=gateway.url_of("e"), api_key="k", max_retries=0) as client,
        pytest.raises(openai.InternalServerError, match="not a chat completion"),
    ):
        client.responses.create(model="m", input="?")


@pytest.mark.parametrize(("tokenize", "counted"), [({"count": 12}, {"input_tokens": 12}), (None, {"estimated": True})])
def test_tokens_are_counted_by_the_upstream_or_estimated(tokenize: Any, counted: Json, tmp_path: Path) -> None:
    def answer(_: Any) -> Iterator[bytes]:
        yield whole({"error": {"message": "no route"}}, "404 Not Found") if tokenize is None else whole(tokenize)

    with stub(answer) as upstream, Gateway(upstream.url, out=tmp_path) as gateway:
        with anthropic.Anthropic(base_url=gateway.url.removesuffix("/v1"), api_key="k", max_retries=0) as client:
            count: Any = client.messages.count_tokens(model="m", messages=[TASK], system="Be brief.")  # pyright: ignore
        with openai.OpenAI(base_url=gateway.url, api_key="k", max_retries=0) as client:
            same: Any = client.responses.input_tokens.count(model="m", input=[TASK], instructions="Be brief.")  # pyright: ignore
    for found in (count.to_dict(), same.to_dict()):
        assert found["input_tokens"] > 10
        assert {**found, **counted} == found
    assert {request.path for request in upstream.requests} == {"/tokenize"}
    assert upstream.requests[0].body["messages"] == [{"role": "system", "content": "Be brief."}, TASK]
