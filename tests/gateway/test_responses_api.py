"""OpenAI's Responses API, checked with the types and the stream reader of OpenAI's SDK."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, get_args

import pytest
from openai._types import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent

from r3agent.errors import ArgumentError
from r3agent.gateway.dialect import Event
from r3agent.gateway.responses_api import ResponsesApi
from tests.support.chunked import Json, call, chunked, completion

EVENTS: dict[str, Any] = {
    get_args(model.model_fields["type"].annotation)[0]: model for model in get_args(get_args(ResponseStreamEvent)[0])
}
"""Classes of the SDK's events by their names."""

FUNCTION = {"type": "function", "name": "look", "description": "Look.", "parameters": {"type": "object"}}
PATCH = {"type": "custom", "name": "patch", "format": {"type": "grammar", "syntax": "lark", "definition": "start: X"}}
NAMESPACE = {"type": "namespace", "name": "files", "description": "Files.", "tools": [{**FUNCTION, "name": "read"}]}
TOOLS = [FUNCTION, PATCH, NAMESPACE]

STEPS: list[Json] = [
    {"reasoning_content": "Two files.", "content": "I look.", "tool_calls": [call("c1", "look", '{"at":  "é"}')]},
    {"content": "", "tool_calls": [call("c2", "look", "{}"), call("c3", "files__read", '{"path": "a"}')]},
    {"reasoning": "Now patch.", "content": None, "tool_calls": [call("c4", "patch", '{"input": "*** \\"Begin\\""}')]},
    {"reasoning_content": "Done. 😀", "content": "It is fixed."},
    {"content": "You are welcome."},
]
"""Answers of the model, one after another."""


def run(stream: Any, chunks: Iterable[Json]) -> list[Event]:
    return [event for chunk in chunks for event in stream.take(chunk)] + list(stream.end())


def read(events: Iterable[Event]) -> Response:
    """Read a stream as the SDK does; return the final response."""
    state: Any = ResponseStreamState(input_tools=omit, text_format=omit)
    events = list(events)
    for number, (name, data) in enumerate(events):
        assert isinstance(data, dict)
        assert (data["type"], data["sequence_number"]) == (name, number)
        state.handle_event(EVENTS[str(name)].model_validate(json.loads(json.dumps(data))))
    assert isinstance(events[-1].data, dict)
    return Response.model_validate(events[-1].data["response"])


def outputs(response: Json) -> list[Json]:
    """Results of the calls of a response, as a client sends them."""
    kinds = {"function_call": "function_call_output", "custom_tool_call": "custom_tool_call_output"}
    calls = [item for item in response["output"] if item["type"] in kinds]
    return [{"type": kinds[item["type"]], "call_id": item["call_id"], "output": "ok"} for item in calls]


def reminder(text: str) -> Json:
    return {"type": "text", "text": f"<system-reminder>\n{text}\n</system-reminder>"}


def without_ids(item: Json) -> Json:
    """Return what Codex sends back of an item."""
    return {key: value for key, value in item.items() if key not in ("id", "status")}


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("sent_back", [dict, without_ids])
def test_history_of_a_turn_begins_with_that_of_the_turn_before(is_stream: bool, sent_back: Any) -> None:
    api, items = ResponsesApi(), [{"role": "user", "content": "Fix it."}]
    before: list[Json] = []
    for step in STEPS:
        body = {"model": "m", "instructions": "Be brief.", "input": items, "tools": TOOLS, "stream": is_stream}
        messages = api.to_chat(body)["messages"]
        assert messages[: len(before)] == before
        answer = completion(step)
        if is_stream:
            response: Json = read(run(api.stream(body), chunked(answer))).to_dict(mode="json")
        else:
            response = api.from_chat(answer, body)
        before = [*messages, _as_sent_back(step)]
        items = [*items, *map(sent_back, response["output"]), *outputs(response)]
        if not outputs(response):
            items.append({"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Thanks."}]})


def _as_sent_back(step: Json) -> Json:
    """Return the chat message that says what the model answered, as servers take it back."""
    thinking = step.get("reasoning_content") or step.get("reasoning")
    return {
        "role": "assistant",
        "content": step["content"] or "",
        **({"reasoning_content": thinking} if thinking else {}),
        **({"tool_calls": step["tool_calls"]} if "tool_calls" in step else {}),
    }


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_stream_ends_with_the_response_of_a_whole_answer(step: Json, size: int) -> None:
    body = {"model": "m", "input": "Fix it.", "tools": TOOLS}
    whole = Response.model_validate(ResponsesApi().from_chat(completion(step), body))
    streamed = read(run(ResponsesApi().stream({**body, "stream": True}), chunked(completion(step), size)))

    def plain(response: Response) -> Any:
        data: Any = response.to_dict(mode="json")
        for thing in (data, *data["output"]):
            thing.pop("id")
        return {**data, "created_at": 0, "completed_at": 0}

    assert plain(whole) == plain(streamed)
    assert whole.usage is not None
    assert (whole.usage.total_tokens, whole.usage.input_tokens_details.cached_tokens) == (27, 16)
    assert whole.output_text == (step["content"] or "")
    assert whole.status == "completed"


def test_stream_has_the_events_of_the_api_in_order() -> None:
    events = run(ResponsesApi().stream({"model": "m", "input": "", "tools": TOOLS}), chunked(completion(STEPS[0]), 100))
    assert [name for name, _ in events] == [
        *("response.created", "response.in_progress"),
        *("response.output_item.added", "response.content_part.added", "response.reasoning_text.delta"),
        *("response.reasoning_text.done", "response.content_part.done", "response.output_item.done"),
        *("response.output_item.added", "response.content_part.added", "response.output_text.delta"),
        *("response.output_text.done", "response.content_part.done", "response.output_item.done"),
        *("response.output_item.added", "response.function_call_arguments.delta"),
        *("response.function_call_arguments.done", "response.output_item.done", "response.completed"),
    ]
    assert events[2].wire.startswith(b"event: response.output_item.added\ndata: {")


def test_stream_keeps_calls_apart_that_come_interleaved() -> None:
    calls = [call("c1", "look", ""), call("c2", "look", "")]
    deltas: list[Json] = [
        {"tool_calls": [{**each, "index": i} for i, each in enumerate(calls)]},
        {"tool_calls": [{"index": 1, "function": {"arguments": '{"a":'}}], "content": "Hm."},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": " 1}"}}]},
    ]
    chunks = [{"choices": [{"delta": delta}]} for delta in deltas]
    chunks.append({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]})
    response = read(run(ResponsesApi().stream({"input": ""}), chunks))
    items: list[Any] = response.output
    assert [(item.call_id, item.arguments) for item in items[:2]] == [("c1", "{}"), ("c2", '{"a": 1}')]
    assert response.output_text == "Hm."


def test_stream_tells_length_filter_and_failure() -> None:
    api, text = ResponsesApi(), {"content": "It is"}
    cut = read(run(api.stream({"input": ""}), chunked(completion(text, "length"))))
    assert (cut.status, cut.incomplete_details and cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert cut.output[0].status == "incomplete"  # pyright: ignore[reportAttributeAccessIssue]
    filtered = Response.model_validate(api.from_chat(completion(text, "content_filter"), {"input": ""}))
    assert filtered.incomplete_details is not None
    assert filtered.incomplete_details.reason == "content_filter"
    for chunks in ([], list(chunked(completion(text)))[:2]):
        stream = api.stream({"input": ""})
        events = [event for chunk in chunks for event in stream.take(chunk)] + list(stream.fail(502, "it is down"))
        failed = read(events)
        assert failed.status == "failed"
        assert failed.error is not None
        assert (failed.error.code, failed.error.message) == ("server_error", "it is down")
    broken = chunked(completion(text)), [{"error": {"message": "out of memory", "code": 500}}]
    for chunks, message in zip(broken, ("ended before the answer", "out of memory"), strict=True):
        failed = read(run(api.stream({"input": ""}), list(chunks)[:2]))
        assert failed.error is not None
        assert message in failed.error.message
    (*_, too_long) = api.stream({"input": ""}).fail(400, "maximum context length is 8")
    assert isinstance(too_long.data, dict)
    assert too_long.data["response"]["error"]["code"] == "context_length_exceeded"


def test_logprobs_are_those_of_the_text() -> None:
    logprobs = {"content": [{"token": "It", "logprob": -0.5, "bytes": [73, 116], "top_logprobs": []}]}
    body = {"input": "", "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    chat = ResponsesApi().to_chat({**body, "input": "Hi"})
    assert (chat["logprobs"], chat["top_logprobs"]) == (True, 2)
    answer = completion({"content": "It"}, logprobs=logprobs)
    asked: Any = Response.model_validate(ResponsesApi().from_chat(answer, body)).output[0]
    assert asked.content[0].logprobs[0].logprob == -0.5
    assert ResponsesApi().from_chat(answer, {"input": ""})["output"][0]["content"][0]["logprobs"] == []


def test_request_is_translated_field_by_field() -> None:
    schema = {"type": "object", "properties": {}}
    chat = ResponsesApi().to_chat(
        {
            "model": "m",
            "instructions": "Be brief.",
            "stream": True,
            "max_output_tokens": 9,
            "temperature": 0.5,
            "top_p": 0.9,
            "parallel_tool_calls": False,
            "reasoning": {"effort": "low", "summary": "auto"},
            "store": False,
            "include": ["reasoning.encrypted_content"],
            "prompt_cache_key": "k",
            "unknown": {},
            "text": {"format": {"type": "json_schema", "name": "a", "schema": schema, "strict": True}},
            "tools": [*TOOLS, {"type": "web_search", "external_web_access": False}],
            "tool_choice": {"type": "custom", "name": "patch"},
            "input": [
                {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "No network."}]},
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "See:"},
                        {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "low"},
                    ],
                },
                {"type": "function_call", "call_id": "c1", "name": "read", "namespace": "files", "arguments": ""},
                {
                    "type": "function_call_output",
                    "call_id": "c1",
                    "output": [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "http://x/i"}],
                },
                {"role": "developer", "content": "Go on."},
                {"role": "user", "content": "Now."},
            ],
        }
    )
    patch = chat["tools"][1]["function"]["parameters"]["properties"]["input"]["description"]
    assert "lark grammar:\nstart: X" in patch
    assert [tool["function"]["name"] for tool in chat.pop("tools")] == ["look", "patch", "files__read"]
    image = {"type": "image_url", "image_url": {"url": "http://x/i"}}
    shown = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}}
    assert chat == {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}},
        "tool_choice": {"type": "function", "function": {"name": "patch"}},
        "messages": [
            {"role": "system", "content": "Be brief.\n\nNo network."},
            {"role": "user", "content": [{"type": "text", "text": "See:"}, shown]},
            {"role": "assistant", "content": "", "tool_calls": [call("c1", "files__read", "{}")]},
            {"role": "tool", "tool_call_id": "c1", "content": "a"},
            {"role": "user", "content": [image, reminder("Go on."), {"type": "text", "text": "Now."}]},
        ],
    }


@pytest.mark.parametrize(
    ("choice", "chat", "tools"),
    [
        ("required", "required", ["look", "patch", "files__read"]),
        ("none", "none", ["look", "patch", "files__read"]),
        ({"type": "function", "name": "read"}, {"type": "function", "function": {"name": "files__read"}}, None),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "look"}]}, "auto", ["look"]),
    ],
)
def test_tool_choice_is_translated(choice: Any, chat: Any, tools: list[str] | None) -> None:
    body = ResponsesApi().to_chat({"input": "Fix it.", "tools": TOOLS, "tool_choice": choice})
    assert body["tool_choice"] == chat
    assert tools in (None, [tool["function"]["name"] for tool in body["tools"]])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"input": []}, "input: is empty"),
        ({"input": 7}, "input = 7: must be a list of objects"),
        ({"background": True}, "background = True: .*leave it out"),
        ({"conversation": "conv_1"}, "conversation = 'conv_1': .*send the whole history"),
        ({"previous_response_id": "resp_1"}, "previous_response_id = 'resp_1': .*send the whole history"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "item_reference 'msg_1': .*send the item itself"),
        ({"tools": [{"type": "file_search"}]}, r"tools\[0\]: a tool of type 'file_search' runs on OpenAI's"),
        ({"tools": [FUNCTION, {"type": "function"}]}, r"tools\[1\].name = None: a tool needs a name"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "lok"}}, "did you mean 'look'"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "no function or custom tool"),
        ({"tool_choice": {"type": "web_search"}}, "the request has no function or custom tool"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format = .*json_schema"),
        ({"input": [{"type": "computer_call"}]}, r"input\[0\]: an item of type 'computer_call'"),
        ({"input": [{"role": "tool", "content": "4"}]}, r"input\[0\].role = 'tool'"),
        ({"input": [{"type": "function_call", "name": "look"}]}, r"input\[0\]: a call needs its id"),
        ({"input": [{"type": "function_call_output", "output": "4"}]}, r"input\[0\].call_id = None"),
        ({"input": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "a part of type 'input_audio'"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "a stored file"),
    ],
)
def test_request_that_chat_completions_cannot_express_is_refused(body: Json, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ResponsesApi().to_chat({"input": "Fix it.", **body})


def test_previous_response_is_continued_while_it_is_remembered() -> None:
    api = ResponsesApi(memory_bytes=3_000)
    body: Json = {"input": "Fix it.", "tools": TOOLS}
    chats: list[Json] = []
    for step in STEPS[:3]:
        chats.append(api.to_chat(body))
        response = api.from_chat(completion(step), body)
        body = {"input": outputs(response), "tools": TOOLS, "previous_response_id": response["id"]}
    chats.append(api.to_chat(body))
    for chat, after, step in zip(chats, chats[1:], STEPS, strict=False):
        known = [*chat["messages"], _as_sent_back(step)]
        assert after["messages"][: len(known)] == known
    unstored = api.from_chat(completion(STEPS[4]), {**body, "store": False})
    with pytest.raises(ArgumentError, match="does not remember"):
        api.to_chat({"input": "Thanks.", "previous_response_id": unstored["id"]})
    api.from_chat(completion(STEPS[4]), {"input": "x" * 2_900})
    with pytest.raises(ArgumentError, match="does not remember"):
        api.to_chat(body)


def test_thinking_comes_back_from_any_field_of_its_item() -> None:
    api = ResponsesApi()
    item = api.from_chat(completion(STEPS[3]), {"input": "Fix it."})["output"][0]
    forms = [
        item,
        {"type": "item_reference", "id": item["id"]},
        {"type": "reasoning", "summary": [], "encrypted_content": item["encrypted_content"]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Done. 😀"}], "encrypted_content": "gAAA"},
    ]
    for form in forms:
        assert api.to_chat({"input": [form]})["messages"][0]["reasoning_content"] == "Done. 😀"


def test_errors_and_counts_have_the_form_of_the_api() -> None:
    api = ResponsesApi()
    error = api.error(400, "maximum context length is 8", "BadRequestError")["error"]
    assert (error["type"], error["code"]) == ("BadRequestError", "context_length_exceeded")
    assert api.error(503, "down")["error"]["type"] == "server_error"
    assert api.count(7) == {"object": "response.input_tokens", "input_tokens": 7}
    assert api.count(7, is_estimate=True)["estimated"] is True
