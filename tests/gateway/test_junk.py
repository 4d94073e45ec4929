"""Requests and answers with a wrong value anywhere in them: refused, or translated, and never a crash."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest

from r3agent.errors import ArgumentError, ProtocolError
from r3agent.gateway.dialect import Dialect
from r3agent.gateway.messages_api import MessagesApi
from r3agent.gateway.responses_api import ResponsesApi
from r3agent.records.json_values import json_bytes
from tests.support.chunked import Json, call, chunked, completion

JUNK: list[Any] = [None, 0, 1.5, True, "", "{", "\ud83d", [], {}, [None], [{}], {"type": "text"}, 2**70, float("nan")]

RESPONSES: Json = {
    "model": "m",
    "instructions": "Be brief.",
    "include": ["message.output_text.logprobs"],
    "reasoning": {"effort": "low"},
    "text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}}},
    "tools": [
        {"type": "custom", "name": "patch", "format": {"type": "grammar", "syntax": "lark", "definition": "start: X"}},
        {"type": "namespace", "name": "files", "tools": [{"type": "function", "name": "read", "parameters": {}}]},
    ],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "custom", "name": "patch"}]},
    "input": [
        {"role": "user", "content": [{"type": "input_image", "image_url": "http://x/i"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "r3agent:aGk="},
        {"type": "custom_tool_call", "call_id": "c", "name": "patch", "input": "x"},
        {"type": "custom_tool_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "x"}]},
    ],
}
MESSAGES: Json = {
    "model": "m",
    "system": [{"type": "text", "text": "Be brief."}],
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {}}},
    "thinking": {"type": "disabled"},
    "tools": [{"name": "look", "input_schema": {}}],
    "tool_choice": {"type": "tool", "name": "look"},
    "messages": [
        {"role": "user", "content": [{"type": "document", "source": {"type": "text", "data": "x"}}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "look", "input": {"a": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "x", "is_error": True}]},
    ],
}
LOGPROBS = {"content": [{"token": "a", "logprob": -1.0, "top_logprobs": [{"token": "b", "logprob": -2.0}]}]}
ANSWER = completion(
    {"reasoning": "r", "content": "a", "tool_calls": [call("c", "patch", '{"input": "x"}')]}, logprobs=LOGPROBS
)


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values within a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield (*place, key)
        yield from places(part, (*place, key))


def spoiled(whole: Json) -> Iterator[Json]:
    """Copies of a value with junk at one place each."""
    for place in places(whole):
        for junk in JUNK:
            copy: Any = deepcopy(whole)
            parent = copy
            for key in place[:-1]:
                parent = parent[key]
            parent[place[-1]] = deepcopy(junk)
            yield copy


def translate(dialect: Dialect, answer: Json, request: Json) -> None:
    """Translate an answer whole and streamed, and write it."""
    stream = dialect.stream(request)
    for event in [event for chunk in chunked(answer) for event in stream.take(chunk)] + list(stream.end()):
        assert event.wire
    assert json_bytes(dialect.from_chat(answer, request))


@pytest.mark.parametrize(("dialect", "request_"), [(ResponsesApi(), RESPONSES), (MessagesApi(), MESSAGES)])
def test_request_with_junk_is_refused_or_answered(dialect: Dialect, request_: Json) -> None:
    assert dialect.to_chat(request_)["messages"]
    n_refused = 0
    for body in spoiled(request_):
        try:
            dialect.to_chat(body)
        except ArgumentError:
            n_refused += 1
        else:
            translate(dialect, ANSWER, body)
    assert n_refused > 100


@pytest.mark.parametrize(("dialect", "request_"), [(ResponsesApi(), RESPONSES), (MessagesApi(), MESSAGES)])
def test_answer_with_junk_is_an_error_of_the_upstream(dialect: Dialect, request_: Json) -> None:
    n_refused = 0
    for answer in spoiled(ANSWER):
        stream = dialect.stream(request_)
        (choice,) = answer["choices"] if isinstance(answer["choices"], list) and answer["choices"] else (None,)
        chunk = {**answer, "choices": [{**choice, "delta": choice.get("message")}]} if isinstance(choice, dict) else {}
        assert all(event.wire for event in (*stream.take(chunk), *stream.end()))
        try:
            assert json_bytes(dialect.from_chat(answer, request_))
        except ProtocolError:
            n_refused += 1
    assert n_refused > 50
