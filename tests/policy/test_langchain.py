"""A LangChain chat model as the policy, and what it cannot give."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from r3agent import AccessError, EndpointError, Sampling, Trajectory, build_graph
from r3agent.errors import ContextLengthError, RequestError
from r3agent.policy import Policy
from r3agent.policy.langchain import NO_IDS, ChatModelPolicy
from r3agent.testing import PROMPT_TOO_LONG, SERVER_ERROR, ScriptedEndpoint
from tests.support.gateway import Gateway, gateway

ASK = [{"role": "system", "content": "be short"}, {"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "get", "parameters": {"type": "object", "properties": {}}}}


def fake(*answers: AIMessage | str) -> ChatModelPolicy:
    messages: Iterator[AIMessage | str] = iter(answers)
    return ChatModelPolicy(GenericFakeChatModel(messages=messages))


def test_it_is_a_policy() -> None:
    assert isinstance(fake(), Policy)


async def test_each_of_n_is_a_call_and_says_what_it_is_good_for() -> None:
    drawn = await fake("one", "two").sample(ASK, n=2)
    assert sorted(g.text for g in drawn) == ["one", "two"]
    assert {(g.capability, g.capability_note) for g in drawn} == {("trainable-retokenised", NO_IDS)}
    assert {(g.token_ids, g.prompt_token_ids, g.policy_version) for g in drawn} == {(None, None, "v0000")}


@pytest.mark.parametrize(
    ("answer", "capability", "note"),
    [
        (AIMessage(""), "eval-only", "the completion is empty"),
        (AIMessage([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "hi"}]), "eval-only", "thinking"),
        (AIMessage("hi", additional_kwargs={"reasoning_content": "hm"}), "eval-only", "thinking"),
        (AIMessage([{"type": "text", "text": "hi"}]), "trainable-retokenised", NO_IDS),
    ],
)
async def test_what_the_text_does_not_spell_is_marked(answer: AIMessage, capability: str, note: str) -> None:
    [generation] = await fake(answer).sample(ASK)
    assert generation.capability == capability
    assert note in (generation.capability_note or "")


async def test_thinking_that_a_provider_hands_over_is_recorded() -> None:
    [generation] = await fake(AIMessage("hi", additional_kwargs={"reasoning_content": "hm"})).sample(ASK)
    assert generation.message == {"role": "assistant", "content": "hi", "reasoning_content": "hm"}


async def test_tool_calls_are_in_the_shape_of_openais_api_the_broken_ones_too() -> None:
    answer = AIMessage(
        "",
        tool_calls=[{"name": "get", "args": {"a": 1}, "id": "1", "type": "tool_call"}],
        invalid_tool_calls=[
            {"name": "get", "args": '{"a":', "id": "2", "error": "no JSON", "type": "invalid_tool_call"}
        ],
    )
    [generation] = await fake(answer).sample(ASK)
    assert [call["function"] for call in generation.tool_calls] == [
        {"name": "get", "arguments": '{"a": 1}'},
        {"name": "get", "arguments": '{"a":'},
    ]


@pytest.mark.parametrize(
    ("told", "reason"),
    [({"finish_reason": "stop"}, "stop"), ({"stop_reason": "max_tokens"}, "length"), ({}, None)],
)
async def test_the_token_limit_is_known_by_every_providers_name(told: dict[str, Any], reason: str | None) -> None:
    [generation] = await fake(AIMessage("hi", response_metadata=told)).sample(ASK)
    assert generation.finish_reason == reason


class Refusing(BaseChatModel):
    """Raises what it is given."""

    error: Any

    @property
    def _llm_type(self) -> str:
        return "refusing"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        if self.error is None:
            return ChatResult(generations=[ChatGeneration(message=AIMessage("ok"))])
        raise self.error


async def test_whatever_a_model_raises_is_a_policys_error() -> None:
    with pytest.raises(EndpointError, match="Refusing: ValueError: boom"):
        await ChatModelPolicy(Refusing(error=ValueError("boom"))).sample(ASK)


def test_the_graph_runs_with_it() -> None:
    policy = fake("wrong", "think", "right")
    graph = build_graph(policy=policy, verifier=lambda task, answer: answer == "right").compile()
    result = graph.invoke({"task": {"messages": ASK}})
    assert (result["answer"], result["passed"]) == ("right", True)
    spans = Trajectory.model_validate(result["trajectory"]).spans
    assert [(s.label, s.capability) for s in spans] == [
        (label, "trainable-retokenised") for label in ("attempt", "reflect", "retry")
    ]


# ---- the model of a provider's package, against a real server ----


OTHERWISE = f"{NO_IDS}; sampled with temperature = 0.5: not from what its logprobs describe"


@asynccontextmanager
async def chat_openai(endpoint: ScriptedEndpoint | Gateway, **settings: Any) -> AsyncIterator[ChatModelPolicy]:
    langchain_openai = pytest.importorskip("langchain_openai")
    async with openai.DefaultAsyncHttpxClient() as http:
        settings |= {"base_url": endpoint.url, "api_key": "sk-hidden", "max_retries": 0, "http_async_client": http}
        yield ChatModelPolicy(langchain_openai.ChatOpenAI(model="scripted", **settings))


async def test_chat_openai_passes_on_logprobs_usage_tools_and_the_sampling() -> None:
    with ScriptedEndpoint("hi") as endpoint:
        drawn = Sampling(temperature=0.5, seed=7, max_tokens=9)
        async with chat_openai(endpoint, logprobs=True) as policy:
            [generation] = await policy.sample(ASK, tools=[TOOL], sampling=drawn)
    [received] = endpoint.received
    assert received.body["messages"] == ASK
    assert received.body["tools"] == [TOOL]
    assert (received.body["temperature"], received.body["seed"]) == (0.5, 7)
    assert generation.logprobs == (-0.5, -0.5, -0.5)
    assert (generation.model, generation.finish_reason, generation.completion_tokens) == ("scripted", "stop", 3)
    assert (generation.capability, generation.capability_note) == ("trainable-retokenised", OTHERWISE)
    assert generation.sampling["temperature"] == 0.5


@pytest.mark.parametrize(
    ("refuses", "lost"),
    [(["temperature"], ["temperature"]), (["max_completion_tokens"], ["max_tokens"]), (["temperature", "seed"], None)],
)
async def test_chat_openai_goes_on_without_refused_settings(refuses: Any, lost: Any) -> None:
    with ScriptedEndpoint("hi", refuses=refuses) as endpoint:
        async with chat_openai(endpoint) as policy:
            for _ in range(2):
                [generation] = await policy.sample(ASK, sampling=Sampling(temperature=0.5, seed=7, max_tokens=9))
    lost = lost or ["seed", "temperature"]
    assert generation.sampling["refused"] == lost
    assert {generation.sampling[name] for name in lost} == {None}
    assert f"the server decided on {', '.join(lost)}" in (generation.capability_note or "")
    assert len(endpoint.received) >= 3
    assert not {*refuses} & endpoint.received[-1].body.keys()


async def test_an_argument_that_the_model_does_not_know_is_left_out() -> None:
    class Picky(Refusing):
        def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
            if "top_p" in kwargs:
                raise TypeError("create() got an unexpected keyword argument 'top_p'")
            return super()._generate(messages, *args, **kwargs)

    [generation] = await ChatModelPolicy(Picky(error=None)).sample(ASK, sampling=Sampling())
    assert (generation.text, generation.sampling["refused"]) == ("ok", ["top_p"])


async def test_headers_are_sent_and_in_no_message() -> None:
    with gateway() as server:
        async with chat_openai(server) as inner:
            policy = ChatModelPolicy(inner.model, headers={"x-team": "team-secret"})
            await policy.sample(ASK)
            server.error = {"error": {"message": "no team-secret"}}
            with pytest.raises(RequestError, match=r"no \[the header x-team\]"):
                await policy.sample(ASK)
    assert server.last.headers["x-team"] == "team-secret"


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"api_key": "sk-right"}, AccessError),
        ({"faults": [PROMPT_TOO_LONG]}, ContextLengthError),
        ({"faults": [SERVER_ERROR]}, EndpointError),
    ],
)
async def test_a_providers_errors_are_told_apart_and_quote_no_key(settings: Any, error: type[Exception]) -> None:
    with ScriptedEndpoint("hi", **settings) as endpoint:
        async with chat_openai(endpoint) as policy:
            with pytest.raises(error) as raised:
                await policy.sample(ASK)
    assert type(raised.value) is error
    assert "sk-hidden" not in str(raised.value)


async def test_a_providers_error_without_a_status_is_known_by_its_text() -> None:
    class ContextOverflowError(Exception):
        pass

    def answers() -> Iterator[AIMessage]:
        raise ContextOverflowError("The input token count (70) exceeds the maximum")
        yield

    with pytest.raises(ContextLengthError):
        await ChatModelPolicy(GenericFakeChatModel(messages=answers())).sample(ASK)
