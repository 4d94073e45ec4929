"""Anthropic's Messages API, checked with the types and the stream reader of Anthropic's SDK."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from r3agent.errors import ArgumentError
from r3agent.gateway.dialect import Event
from r3agent.gateway.messages_api import MessagesApi
from tests.support.chunked import Json, call, chunked, completion

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
API = MessagesApi()

TOOLS = [{"name": "look", "description": "Look.", "input_schema": {"type": "object"}, "cache_control": {"type": "x"}}]

STEPS: list[Json] = [
    {"reasoning_content": "Two files.", "content": "I look.", "tool_calls": [call("c1", "look", '{"at": "é"}')]},
    {"content": "", "tool_calls": [call("c2", "look", "{}"), call("c3", "look", '{"at": {"line": 1}}')]},
    {"reasoning": "Now a slip.", "content": None, "tool_calls": [call("c4", "look", '{"at": ')]},
    {"reasoning_content": "Done. 😀", "content": "It is fixed."},
    {"content": "You are welcome."},
]
"""Answers of the model, one after another; the third has arguments that are not JSON."""


def run(stream: Any, chunks: Iterable[Json]) -> list[Event]:
    return [event for chunk in chunks for event in stream.take(chunk)] + list(stream.end())


def read(events: Iterable[Event]) -> Message:
    """Read a stream as the SDK does."""
    message: Any = None
    buffers: dict[int, bytes] = {}
    for name, data in events:
        assert isinstance(data, dict)
        assert data["type"] == name
        if name != "ping":
            event = EVENT.validate_python(json.loads(json.dumps(data)))
            message = accumulate_event(event=event, current_snapshot=message, json_bufs=buffers)
    return Message.model_validate(message.to_dict())


def results(message: Json) -> list[Json]:
    calls = [block for block in message["content"] if block["type"] == "tool_use"]
    return [{"type": "tool_result", "tool_use_id": block["id"], "content": "ok"} for block in calls]


def as_sent_back(step: Json) -> Json:
    """Return the chat message that says what the model answered, as servers take it back."""
    thinking = step.get("reasoning_content") or step.get("reasoning")
    return {
        "role": "assistant",
        "content": step["content"] or "",
        **({"reasoning_content": thinking} if thinking else {}),
        **({"tool_calls": step["tool_calls"]} if "tool_calls" in step else {}),
    }


@pytest.mark.parametrize("is_stream", [False, True])
def test_history_of_a_turn_begins_with_that_of_the_turn_before(is_stream: bool) -> None:
    messages: list[Json] = [{"role": "user", "content": "Fix it."}]
    before: list[Json] = []
    for number, step in enumerate(STEPS):
        system = [
            {"type": "text", "text": f"x-anthropic-billing-header: cch={number}"},
            {"type": "text", "text": "Go."},
        ]
        body = {"model": "m", "system": system, "messages": messages, "tools": TOOLS, "max_tokens": 9}
        history = API.to_chat(body)["messages"]
        assert history[: len(before)] == before
        answer = completion(step)
        message = read(run(API.stream(body), chunked(answer))).to_dict() if is_stream else API.from_chat(answer, body)
        assert isinstance(message, dict)
        before = [*history, as_sent_back(step)]
        answers = [*results(message), {"type": "text", "text": "Go on.", "cache_control": {"type": "ephemeral"}}]
        messages = [
            *messages,
            {"role": "assistant", "content": message["content"]},
            {"role": "user", "content": answers},
        ]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_stream_ends_with_the_message_of_a_whole_answer(step: Json, size: int) -> None:
    body = {"model": "m", "messages": []}
    whole = Message.model_validate(API.from_chat(completion(step), body))
    streamed = read(run(API.stream(body), chunked(completion(step), size)))
    assert whole.to_dict(exclude_none=True) | {"id": ""} == streamed.to_dict(exclude_none=True) | {"id": ""}
    assert (whole.model, whole.stop_reason) == ("served", "tool_use" if "tool_calls" in step else "end_turn")
    usage = whole.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (4, 16, 7)


def test_stream_has_the_events_of_the_api_in_order() -> None:
    events = run(API.stream({}), chunked(completion(STEPS[0]), 100))
    assert [name for name, _ in events] == [
        *("message_start", "ping"),
        *("content_block_start", "content_block_delta", "content_block_delta", "content_block_stop"),
        *("content_block_start", "content_block_delta", "content_block_stop"),
        *("content_block_start", "ping", "content_block_delta", "content_block_stop"),
        *("message_delta", "message_stop"),
    ]
    assert events[0].wire.startswith(b"event: message_start\ndata: {")


@pytest.mark.parametrize(
    ("choice", "stop_reason", "stop_sequence"),
    [
        ({"finish_reason": "stop"}, "end_turn", None),
        ({"finish_reason": "stop", "stop_reason": 151645}, "end_turn", None),
        ({"finish_reason": "stop", "stop_reason": "END"}, "stop_sequence", "END"),
        ({"finish_reason": "stop", "matched_stop": "END"}, "stop_sequence", "END"),
        ({"finish_reason": "length"}, "max_tokens", None),
        ({"finish_reason": "content_filter"}, "refusal", None),
    ],
)
def test_stop_reason_is_that_of_the_finish_reason(choice: Json, stop_reason: str, stop_sequence: str | None) -> None:
    answer = completion({"content": "It"}, **choice)
    for message in (Message.model_validate(API.from_chat(answer, {})), read(run(API.stream({}), chunked(answer)))):
        assert (message.stop_reason, message.stop_sequence) == (stop_reason, stop_sequence)


def test_stream_that_fails_ends_with_an_error() -> None:
    stream = API.stream({})
    begun = [event for chunk in list(chunked(completion({"content": "It is"})))[:2] for event in stream.take(chunk)]
    (failed,) = stream.fail(502, "it is down")
    assert [name for name, _ in begun] == ["message_start", "ping", "content_block_start", "content_block_delta"]
    assert failed == ("error", {"type": "error", "error": {"type": "api_error", "message": "it is down"}})
    for chunks, kind in (([], "api_error"), ([{"error": {"message": "busy", "code": 529}}], "overloaded_error")):
        (*_, ended) = run(API.stream({}), chunks)
        assert isinstance(ended.data, dict)
        assert ended.data["error"]["type"] == kind


def test_request_is_translated_field_by_field() -> None:
    schema = {"type": "object", "properties": {}}
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": "AA=="}}
    linked = {"type": "image", "source": {"type": "url", "url": "http://x/i"}}
    chat = API.to_chat(
        {
            "model": "m",
            "max_tokens": 9,
            "stream": True,
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 5,
            "stop_sequences": ["END"],
            "metadata": {"user_id": "u"},
            "context_management": {},
            "unknown": 1,
            "system": "Be brief.",
            "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": schema}},
            "thinking": {"type": "enabled", "budget_tokens": 2048},
            "tools": TOOLS,
            "tool_choice": {"type": "tool", "name": "look", "disable_parallel_tool_use": True},
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "See:"}, image]},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                        {"type": "redacted_thinking", "data": "x"},
                        {"type": "text", "text": "I look."},
                        {"type": "tool_use", "id": "c1", "name": "look", "input": {}},
                        {"type": "tool_use", "id": "c2", "name": "look", "input": {"a": 1}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "c1",
                            "content": [{"type": "text", "text": "a"}, linked],
                        },
                        {"type": "tool_result", "tool_use_id": "c2", "content": "no such file", "is_error": True},
                        {"type": "text", "text": "Go on."},
                        {"type": "document", "source": {"type": "text", "data": "Notes."}},
                    ],
                },
                {"role": "system", "content": "Soon."},
            ],
        }
    )
    function = {"name": "look", "description": "Look.", "parameters": {"type": "object"}}
    soon = "<system-reminder>\nSoon.\n</system-reminder>"
    said = [{"type": "text", "text": text} for text in ("Go on.", "Notes.", soon)]
    urls = ["data:image/jpeg;base64,AA==", "http://x/i"]
    shown, seen = ({"type": "image_url", "image_url": {"url": url}} for url in urls)
    assert chat == {
        "model": "m",
        "max_tokens": 9,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "stop": ["END"],
        "reasoning_effort": "low",
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}},
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "parallel_tool_calls": False,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "See:"}, shown]},
            {
                "role": "assistant",
                "content": "I look.",
                "reasoning_content": "Hm.",
                "tool_calls": [call("c1", "look", "{}"), call("c2", "look", '{"a": 1}')],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "a"},
            {"role": "tool", "tool_call_id": "c2", "content": "Error: no such file"},
            {
                "role": "user",
                "content": [seen, *said],
            },
        ],
    }


@pytest.mark.parametrize(
    ("choice", "chat"), [({"type": "auto"}, "auto"), ({"type": "any"}, "required"), ({"type": "none"}, "none")]
)
def test_tool_choice_is_translated(choice: Json, chat: str) -> None:
    body: Json = {"messages": [{"role": "user", "content": "Hi"}], "tool_choice": choice, "tools": TOOLS}
    assert API.to_chat(body)["tool_choice"] == chat
    assert "tools" not in API.to_chat({**body, "tools": [], "tool_choice": {"type": "none"}})


def test_answer_continues_a_message_of_the_assistant() -> None:
    chat = API.to_chat({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "{"}]})
    assert chat["messages"][1] == {"role": "assistant", "content": "{"}
    assert (chat["continue_final_message"], chat["add_generation_prompt"]) == (True, False)
    assert API.to_chat({"messages": chat["messages"][:1], "thinking": {"type": "disabled"}}) == {
        "messages": [{"role": "user", "content": "Hi"}],
        "reasoning_effort": "none",
    }


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"messages": []}, "messages: is empty"),
        ({"messages": "Hi"}, "messages = 'Hi': must be a list of objects"),
        ({"messages": [{"role": "tool", "content": "4"}]}, r"messages\[0\].role = 'tool'"),
        ({"system": [{"type": "image", "source": {"type": "url", "url": "x"}}]}, "system: has an image"),
        ({"mcp_servers": [{"name": "m"}]}, "mcp_servers = .*leave it out"),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            r"tools\[0\]: a tool of type 'web_search_",
        ),
        ({"tools": [{"name": "look"}]}, r"tools\[0\]: the parameters must be a JSON schema"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "see"}}, "one of the tools .*'look'"),
        ({"tool_choice": {"type": "any"}}, "tool_choice = "),
        ({"output_config": {"format": {"type": "text"}}}, "output_config.format = "),
        (
            {"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "base64"}}]}]},
            "'document'",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file"}}]}]}, "a stored file"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "tool_use_id = None"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "name": "x"}]}]}, "a call needs its id"),
        ({"messages": [{"role": "assistant", "content": [{"type": "server_tool_use"}]}]}, "'server_tool_use'"),
    ],
)
def test_request_that_chat_completions_cannot_express_is_refused(body: Json, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        API.to_chat({"messages": [{"role": "user", "content": "Hi"}], **body})


def test_errors_and_counts_have_the_form_of_the_api() -> None:
    assert API.error(401, "no key")["error"] == {"type": "authentication_error", "message": "no key"}
    assert [API.error(status, "x")["error"]["type"] for status in (422, 500, 529)] == [
        *("invalid_request_error", "api_error", "overloaded_error"),
    ]
    assert API.error(400, "maximum context length is 8")["error"]["message"].startswith("prompt is too long: ")
    assert API.count(7) == {"input_tokens": 7}
    assert API.count(7, is_estimate=True) == {"input_tokens": 7, "estimated": True}
