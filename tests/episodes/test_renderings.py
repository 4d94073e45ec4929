"""Conversations on strict servers: a failed try with calls reaches its retry, and the record is what was sent."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest

from r3agent import OpenAIPolicy, RequestError, Task, Trajectory, build_graph
from r3agent.episodes.renderings import RENDERINGS
from r3agent.policy.langchain import ChatModelPolicy
from r3agent.records.prompts import BLIND_RETRY, NOT_RUN, REFLECT, RETRY
from r3agent.testing import Fault, ScriptedEndpoint
from tests.support.strict import STRICT

TOOL = {"type": "function", "function": {"name": "get", "parameters": {"type": "object", "properties": {}}}}
SYSTEM, ASK = {"role": "system", "content": "be short"}, {"role": "user", "content": "the weather?"}
TASK = {"id": "t", "messages": [SYSTEM, ASK], "tools": [TOOL]}


def call(id_: str, arguments: str = "{}", **more: Any) -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": "get", "arguments": arguments}, **more}


SIGNED: dict[str, Any] = {"extra_content": {"google": {"thought_signature": "abc"}}}
FAILED: dict[str, dict[str, Any]] = {
    "one call": {"content": None, "tool_calls": [call("call_1", **SIGNED)]},
    "two calls with text": {"content": "I call.", "tool_calls": [call("a", **SIGNED), call("b")]},
    "ids that the server repeats": {"content": "", "tool_calls": [call("call_0", **SIGNED), call("call_0")]},
    "no JSON": {"content": "", "tool_calls": [call("call_1", '{"a":')]},
    "thinking": {"content": "no", "reasoning_content": "hm"},
    "nothing": {"content": ""},
    "white space": {"content": " \n"},
}


def answers(failed: dict[str, Any]) -> Any:
    def answer(body: dict[str, Any], choice: int) -> Any:
        last = str(body["messages"][-1]["content"])
        if last.endswith(REFLECT):
            return "I called in vain"
        return "sunny" if last.endswith((RETRY, BLIND_RETRY)) else failed

    return answer


def is_sunny(task: Task, answer: str) -> bool:
    return answer == "sunny"


@asynccontextmanager
async def policy_of(endpoint: ScriptedEndpoint, kind: str = "openai") -> AsyncGenerator[Any]:
    if kind == "openai":
        async with OpenAIPolicy(endpoint.url, endpoint.model, max_tries=1) as policy:
            yield policy
    else:
        langchain_openai = pytest.importorskip("langchain_openai")
        async with openai.DefaultAsyncHttpxClient() as http:
            settings = {"base_url": endpoint.url, "api_key": "x", "max_retries": 0, "http_async_client": http}
            yield ChatModelPolicy(langchain_openai.ChatOpenAI(model="scripted", **settings))


async def run(policy: Any, task: dict[str, Any] = TASK, **settings: Any) -> Trajectory:
    graph = build_graph(policy=policy, verifier=is_sunny, **settings).compile()
    return Trajectory.model_validate((await graph.ainvoke({"task": task}))["trajectory"])


async def run_on(endpoint: ScriptedEndpoint, kind: str = "openai", **settings: Any) -> Trajectory:
    async with policy_of(endpoint, kind) as policy:
        return await run(policy, **settings)


@pytest.mark.parametrize("failed", FAILED)
@pytest.mark.parametrize("kind", ["openai", "langchain"])
@pytest.mark.parametrize("strict", STRICT)
async def test_a_failed_try_reaches_its_retry_on_a_strict_server(strict: str, kind: str, failed: str) -> None:
    validate = STRICT[strict]
    with ScriptedEndpoint(answers(FAILED[failed]), validate=validate) as endpoint:
        trajectory = await run_on(endpoint, kind, blind_retries=1)
        accepted = [received.body for received in endpoint.received if validate(received.body) is None]
    assert [(span.label, span.passed) for span in trajectory.spans] == [
        ("attempt", False),
        ("reflect", None),
        ("retry", True),
        ("retry", True),
    ]
    assert len(accepted) == 4
    if kind == "openai":
        prompts = [trajectory.prompt(span) for span in trajectory.spans]
        assert all(body["messages"] in prompts for body in accepted)
        assert all(prompt in [body["messages"] for body in accepted] for prompt in prompts)


@pytest.mark.parametrize("stream", [False, True])
async def test_what_an_endpoint_takes_is_remembered(stream: bool) -> None:
    with ScriptedEndpoint(answers(FAILED["one call"]), validate=STRICT["mistral"]) as endpoint:
        requests: list[int] = []
        async with policy_of(endpoint) as policy:
            graph = build_graph(policy=policy, verifier=is_sunny, stream=stream).compile()
            for question in ("the weather?", "the wind?", "the tide?"):
                before = len(endpoint.received)
                asked = {"role": "user", "content": question}
                assert (await graph.ainvoke({"task": {**TASK, "messages": [SYSTEM, asked]}}))["passed"]
                requests.append(len(endpoint.received) - before)
    assert requests[0] > requests[2] == 3
    assert endpoint.received[-3].body["messages"] == [SYSTEM, asked]  # which has no calls, and was never refused


@pytest.mark.parametrize("first", ["good", "bad"])
async def test_a_refusal_of_one_conversation_changes_no_other(first: str) -> None:
    def answer(body: dict[str, Any], choice: int) -> Any:
        last = str(body["messages"][-1]["content"])
        if last.endswith((REFLECT, RETRY)):
            return "sunny"
        return FAILED["no JSON" if "bad" in last else "one call"]

    def validate(body: dict[str, Any]) -> str | None:
        """Refuse calls whose arguments are no JSON, as templates of vLLM do that parse them."""
        arguments = [call["function"]["arguments"] for m in body["messages"] for call in m.get("tool_calls") or ()]
        return "Expecting property name enclosed in double quotes" if '{"a":' in arguments else None

    with ScriptedEndpoint(answer, validate=validate) as endpoint:
        async with policy_of(endpoint) as policy:
            graph = build_graph(policy=policy, verifier=is_sunny).compile()
            for i, kind in enumerate([first, "good", "bad", "bad", "good", "bad", "good"]):
                asked = {"role": "user", "content": f"{kind} {i}"}
                assert (await graph.ainvoke({"task": {**TASK, "messages": [SYSTEM, asked]}}))["passed"]
        last = endpoint.received[-1].body["messages"]
    assert [message["role"] for message in last] == ["system", "user", "assistant", "tool", "user", "assistant", "user"]


@pytest.mark.parametrize("kind", ["openai", "langchain"])
async def test_a_reflection_on_calls_has_tools_and_may_not_call_them(kind: str) -> None:
    validate = STRICT["anthropic"]
    with ScriptedEndpoint(answers(FAILED["one call"]), validate=validate) as endpoint:
        trajectory = await run_on(endpoint, kind)
    accepted = [received.body for received in endpoint.received if validate(received.body) is None]
    assert [(body.get("tools"), body.get("tool_choice")) for body in accepted] == [
        ([TOOL], None),
        ([TOOL], "none"),
        ([TOOL], None),
    ]
    [_, reflection, retry] = trajectory.spans
    assert reflection.standalone
    assert reflection.sampling["extra"] == {"tool_choice": "none"}
    assert {reflection.capability, retry.capability} == {
        "trainable-exact" if kind == "openai" else "trainable-retokenised"
    }


async def test_a_lenient_server_gets_the_conversation_as_it_is() -> None:
    with ScriptedEndpoint(answers(FAILED["one call"])) as endpoint:
        trajectory = await run_on(endpoint)
    turn = {"role": "assistant", "content": "", "tool_calls": FAILED["one call"]["tool_calls"]}
    result = {"role": "tool", "tool_call_id": "call_1", "content": NOT_RUN}
    asked = {"role": "user", "content": REFLECT}
    assert [received.body["messages"] for received in endpoint.received] == [
        [SYSTEM, ASK],
        [SYSTEM, ASK, turn, result, asked],
        [SYSTEM, ASK, turn, result, asked, trajectory.spans[1].turn, {"role": "user", "content": RETRY}],
    ]
    assert not any(span.standalone for span in trajectory.spans)
    assert "tools" not in endpoint.received[1].body


async def test_a_refusal_of_another_kind_is_the_first_one() -> None:
    endpoint = ScriptedEndpoint("42", validate=lambda body: "this model is retired")
    with endpoint, pytest.raises(RequestError, match="this model is retired"):
        await run_on(endpoint, task={"messages": [ASK]})
    assert len(endpoint.received) == 1  # a text of the user alone is the same in each rendering


async def test_a_template_error_with_500_is_a_refusal() -> None:
    body = json.dumps(
        {"error": {"code": 500, "message": "Jinja Exception: Conversation roles must alternate"}}
    )  # llama.cpp
    with ScriptedEndpoint("sunny", faults=[Fault(500, body)]) as endpoint:
        assert (await run_on(endpoint)).passed
    roles = [[message["role"] for message in received.body["messages"]] for received in endpoint.received]
    assert roles == [["system", "user"], ["user"]]


@pytest.mark.parametrize(
    "messages",
    [
        [SYSTEM, ASK, {"role": "assistant", "content": "", "tool_calls": [call("1"), call("2")]}],
        [ASK, ASK, {"role": "tool", "tool_call_id": "1", "content": "x"}, ASK],
        [ASK, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}],
        [ASK, {"role": "assistant", "content": None, "reasoning": "hm", "reasoning_details": [1]}, ASK],
    ],
)
def test_a_rendering_changes_nothing_more_the_second_time(messages: list[dict[str, Any]]) -> None:
    for render in RENDERINGS:
        once = render(messages)
        assert render(once) == once
    final = RENDERINGS[-1](messages)
    assert [message["role"] for message in final] == [("user", "assistant")[i % 2] for i in range(len(final))]
    assert ("image_url" in str(final)) == ("image_url" in str(messages))
