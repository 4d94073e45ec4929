"""Functions as agents whose calls get no answer that they can read, or are made where none is recorded."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from openai import AsyncOpenAI, NotFoundError, OpenAI
from pydantic import BaseModel, ValidationError

from r3agent import build_graph
from r3agent.errors import EndpointError, ProtocolError
from r3agent.testing import Fault, ScriptedEndpoint
from tests.episodes.agents.endpoints import TASK, found, policy_at, trajectory
from tests.episodes.agents.test_function import run, sync, text

BROKEN = [
    Fault(body='{"choices": ['),
    Fault(body="<html>", content_type="text/html"),
    Fault(body="{}"),
    Fault(body="[]"),
]


@pytest.mark.parametrize("fault", BROKEN, ids=lambda fault: fault.body)
@pytest.mark.parametrize("agent", [text, sync], ids=["async", "sync"])
async def test_function_is_not_blamed_for_a_broken_response(agent: Any, fault: Fault) -> None:
    with ScriptedEndpoint(faults=[fault] * 9) as endpoint:
        async with policy_at(endpoint) as policy:
            graph = build_graph(policy=policy, verifier=found, agent=agent).compile()
            with pytest.raises(ProtocolError):
                await graph.ainvoke(TASK)


async def streamed(messages: list[Any], client: AsyncOpenAI) -> str:
    stream = await client.chat.completions.create(model="policy", messages=messages, stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


def streamed_in_thread(messages: list[Any], client: OpenAI) -> str:
    stream = client.chat.completions.create(model="policy", messages=messages, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream)


@pytest.mark.parametrize("agent", [streamed, streamed_in_thread])
async def test_function_is_not_blamed_for_a_stream_that_ends_early(agent: Any) -> None:
    half = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "scripted"}
    half |= {"choices": [{"index": 0, "delta": {"content": "4"}, "finish_reason": None}]}
    fault = Fault(body=f"data: {json.dumps(half)}\n\n", content_type="text/event-stream")
    with ScriptedEndpoint(faults=[fault]) as endpoint:
        async with policy_at(endpoint) as policy:
            graph = build_graph(policy=policy, verifier=found, agent=agent, agent_errors="record")
            with pytest.raises(EndpointError, match="the stream ended before the completion"):
                await graph.compile().ainvoke(TASK)


class Place(BaseModel):
    box: str


async def parsed(messages: list[Any], client: AsyncOpenAI) -> str:
    with pytest.raises(ValidationError):
        await client.chat.completions.parse(model="policy", messages=messages, response_format=Place)
    return "none"


def parsed_in_thread(messages: list[Any], client: OpenAI) -> str:
    with pytest.raises(ValidationError):
        client.chat.completions.parse(model="policy", messages=messages, response_format=Place)
    return "none"


@pytest.mark.parametrize("agent", [parsed, parsed_in_thread])
async def test_function_has_a_step_that_it_could_not_parse(agent: Any) -> None:
    output, bodies = await run(agent, answer="a {", max_attempts=1)
    assert [(span.text, span.answer) for span in trajectory(output).spans] == [("a {", "none")]
    assert len(bodies) == 1


def forks(messages: list[Any], client: OpenAI) -> Any:
    if (child := os.fork()) == 0:
        try:
            sync(messages, client)
        except NotFoundError:  # the endpoint has no model "policy"
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    return sync(messages, client)


async def test_function_is_not_served_in_a_forked_process() -> None:
    output, _ = await run(forks)
    assert [span.text for span in trajectory(output).spans] == ["a ball"]
