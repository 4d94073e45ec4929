"""Errors inside responses with status 200, whole and streamed: they are what their status says, and no answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from r3agent.episodes.collect import collect
from r3agent.errors import ContentFilterError, ContextLengthError, EndpointError, RequestError
from r3agent.policy import OpenAIPolicy
from r3agent.records.trajectory import Generation, Task
from r3agent.testing import Fault, ScriptedEndpoint

MESSAGES = [{"role": "user", "content": "6 * 7?"}]

TRANSIENT: list[Any] = [
    {"id": None, "choices": None, "error": {"message": "Provider returned error", "code": 429}},
    {"error": {"message": "Upstream error", "code": 502}},
    {"error": {"message": "slow down", "code": "rate_limit_exceeded"}},
    {"error": {"message": "Overloaded", "type": "overloaded_error"}, "type": "error"},
    {"error": {"message": "try later", "code": "503"}},
    {"error": {"message": "try later", "code": "9" * 5000}},
    {"error": {"message": "quota", "status": "RESOURCE_EXHAUSTED"}},
    {"error": "out of memory"},
    [{"error": {"code": 503, "message": "The model is overloaded", "status": "UNAVAILABLE"}}],
    {"object": "error", "message": "Internal server error", "code": 500},
    {"choices": [], "error": {"message": "overloaded", "code": 502}},
    {"choices": None, "base_resp": {"status_code": 1002, "status_msg": "rate limit exceeded"}},
    {"code": "Throttling", "message": "Requests rate limit exceeded"},
    {"choices": [{"index": 0, "finish_reason": "error", "message": {"content": ""}, "error": {"code": 502}}]},
    {"choices": [{"index": 0, "finish_reason": "error", "message": {"content": "half"}, "delta": {}}]},
]


async def ask(fault: Fault, *, stream: bool = False) -> tuple[Generation, int]:
    """The generation after a faulty response, and the number of requests."""
    with ScriptedEndpoint("42", faults=[fault]) as endpoint:
        async with OpenAIPolicy(endpoint.url, endpoint.model, max_tries=2) as policy:
            [generation] = await policy.sample(MESSAGES, on_delta=(lambda i, text: None) if stream else None)
        return generation, len(endpoint.received)


def streamed(*events: str) -> Fault:
    return Fault(body="".join(f"{event}\n\n" for event in events), content_type="text/event-stream")


@pytest.mark.parametrize("body", TRANSIENT)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_transient_error_in_a_success_is_tried_again(body: Any, stream: bool) -> None:
    content = json.dumps(body)
    fault = streamed(f"data: {content}") if stream else Fault(body=content, headers={"Retry-After": "0.01"})
    generation, n_requests = await ask(fault, stream=stream)
    assert (generation.text, n_requests) == ("42", 2)


@pytest.mark.parametrize(
    "events",
    [
        ['data: {"choices": [{"index": 0, "delta": {"role": "assistant"}}]}', 'data: {"error": {"code": 502}}'],
        ["event: error\ndata: Internal failure"],
        ['event: error\ndata: {"message": "overloaded"}'],
        ['error: {"code": 500, "message": "slot unavailable"}'],
        ['data: {"choices": [{"index": 0, "delta": {"role": "assistant"}}]}'],  # and there it breaks off
        ['data: {"choices": []}'],
        ["data: [DONE]"],
        [],
    ],
)
async def test_an_error_event_before_any_text_is_tried_again(events: list[str]) -> None:
    generation, n_requests = await ask(streamed(*events), stream=True)
    assert (generation.text, n_requests) == ("42", 2)


async def test_an_error_event_after_some_text_is_an_error() -> None:
    begun = 'data: {"choices": [{"index": 0, "delta": {"content": "4"}}]}'
    with pytest.raises(EndpointError, match="502 inside a 200: gone"):
        await ask(streamed(begun, 'data: {"error": {"message": "gone", "code": 502}, "choices": []}'), stream=True)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "bad schema", "code": 400}, RequestError),
        ({"message": "maximum context length is 64 tokens", "code": 400}, ContextLengthError),
        ({"message": "flagged", "code": "content_filter"}, ContentFilterError),
        ({"message": "no such provider", "code": 404}, EndpointError),
    ],
)
async def test_a_lasting_error_in_a_success_is_not_tried_again(error: Any, kind: type[Exception]) -> None:
    with ScriptedEndpoint(faults=[Fault(body=json.dumps({"error": error}))] * 2) as endpoint:
        async with OpenAIPolicy(endpoint.url, endpoint.model) as policy:
            with pytest.raises(kind) as raised:
                await policy.sample(MESSAGES)
    assert type(raised.value) is kind
    assert len(endpoint.received) == 1


async def test_a_refused_field_in_a_success_is_left_out() -> None:
    body = json.dumps({"error": {"message": "Unsupported parameter: 'temperature'", "code": 400}})
    generation, n_requests = await ask(Fault(body=body))
    assert (generation.sampling["refused"], n_requests) == (["temperature"], 2)


async def test_one_request_that_always_fails_ends_no_collection(tmp_path: Path) -> None:
    def refuses(body: Any) -> Fault | None:
        failing = body["messages"][0]["content"] == "task 3"
        return Fault(body='{"error": {"message": "gone", "code": 404}}') if failing else None

    tasks = [Task(messages=({"role": "user", "content": f"task {i}"},)) for i in range(9)]
    with ScriptedEndpoint("42", refuses=refuses) as endpoint:
        async with OpenAIPolicy(endpoint.url, endpoint.model, max_tries=1) as policy:
            summary = await collect(
                tasks, policy=policy, verifier=lambda task, answer: True, out=tmp_path, reflections=1
            )
    assert (summary.episodes, sum(summary.errors.values())) == (9, 1)
