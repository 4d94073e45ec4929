"""Requests of `OpenAIPolicy` and what it records; `test_endpoint.py` has what goes wrong on the wire."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import psutil
import pytest
from pydantic import ValidationError

from r3agent._util.aio import run_sync
from r3agent.episodes.graph import build_graph
from r3agent.errors import ProtocolError, RequestError
from r3agent.policy import OpenAIPolicy, Policy, Sampling
from r3agent.records import versions
from r3agent.records.trajectory import Generation, Task
from r3agent.testing import PROMPT_TOO_LONG, Edit, Fault, ScriptedEndpoint, ScriptedPolicy, miscount

MESSAGES = [{"role": "user", "content": "hello"}]
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "add", "parameters": {}}}
NEUTRAL = {"top_k": -1, "min_p": 0, "repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
"""Settings that a server would otherwise take from the model's generation_config.json."""


async def sample(endpoint: ScriptedEndpoint, n: int = 1, **settings: Any) -> list[Generation]:
    policy = OpenAIPolicy(endpoint.url, endpoint.model, **settings)
    try:
        return await policy.sample(MESSAGES, n=n)
    finally:
        await policy.aclose()


def edited(fields: dict[str, Any]) -> Edit:
    return lambda answer: answer.update(fields)


async def test_what_the_server_sampled_is_recorded_as_it_came() -> None:
    with ScriptedEndpoint("hi") as endpoint:
        [generation] = await sample(endpoint, sampling=Sampling(max_tokens=9, extra={"min_p": 0}))
    assert generation.text == "hi"
    assert generation.token_ids == (104, 105, 256)
    assert generation.logprobs == (-0.5, -0.5, -0.5)
    assert generation.prompt_token_ids is not None
    assert generation.prompt_tokens == len(generation.prompt_token_ids)
    assert generation.completion_tokens == 3
    assert generation.model == endpoint.model
    assert generation.policy_version == "v0000"
    assert generation.finish_reason == "stop"
    assert generation.latency_s is not None
    settings = Sampling(max_tokens=9, extra={"min_p": 0}).model_dump(mode="json")
    assert generation.sampling == settings | NEUTRAL
    assert endpoint.received[0].body.items() >= NEUTRAL.items()
    assert (generation.capability, generation.capability_note) == ("trainable-exact", None)


async def test_n_completions_are_one_request() -> None:
    with ScriptedEndpoint(lambda body, i: f"answer {i}") as endpoint:
        generations = await sample(endpoint, n=3)
    assert [g.text for g in generations] == ["answer 0", "answer 1", "answer 2"]
    assert {g.capability for g in generations} == {"trainable-exact"}
    [received] = endpoint.received
    assert received.body["n"] == 3


@pytest.mark.parametrize("how", ["ignores", "refuses"])
async def test_an_endpoint_without_n_is_asked_again_with_other_seeds(how: str) -> None:
    with ScriptedEndpoint(lambda body, i: f"seed {body['seed']}", **{how: ["n"]}) as endpoint:
        generations = await sample(endpoint, n=4, sampling=Sampling(seed=7))
    assert sorted(g.text for g in generations) == ["seed 10", "seed 7", "seed 8", "seed 9"]
    assert [g.sampling["seed"] for g in generations] == [7, 8, 9, 10]


@pytest.mark.parametrize(
    ("lacking", "capability", "note"),
    [
        (["return_token_ids"], "trainable-retokenised", "the endpoint returned no token ids"),
        (["logprobs"], "trainable-retokenised", "the endpoint returned no logprobs"),
        (["logprobs", "return_token_ids"], "trainable-retokenised", "the endpoint returned no token ids"),
    ],
)
@pytest.mark.parametrize("how", ["ignores", "refuses"])
async def test_an_endpoint_without_tokens_is_still_used_and_the_span_says_so(
    how: str, lacking: Sequence[str], capability: str, note: str
) -> None:
    with ScriptedEndpoint("hi", **{how: lacking}) as endpoint:
        [generation] = await sample(endpoint)
    assert (generation.text, generation.capability, generation.capability_note) == ("hi", capability, note)
    assert generation.completion_tokens == 3


async def test_a_refused_field_is_not_sent_again() -> None:
    with ScriptedEndpoint("hi", refuses=["return_token_ids", "logprobs"]) as endpoint:
        policy = OpenAIPolicy(endpoint.url, endpoint.model)
        for _ in range(2):
            await policy.sample(MESSAGES)
        await policy.aclose()
    assert len(endpoint.received) == 4
    assert not {"return_token_ids", "logprobs"} & endpoint.received[-1].body.keys()


async def test_a_prompt_that_is_too_long_teaches_nothing_about_the_endpoint() -> None:
    with ScriptedEndpoint("hi", faults=[PROMPT_TOO_LONG]) as endpoint:
        policy = OpenAIPolicy(endpoint.url, endpoint.model)
        with pytest.raises(RequestError, match="maximum context length is 64 tokens, the prompt has 70"):
            await policy.sample(MESSAGES)
        [generation] = await policy.sample(MESSAGES)
        await policy.aclose()
    assert generation.capability == "trainable-exact"


async def test_lost_token_ids_are_not_trained_on() -> None:
    with ScriptedEndpoint("hi", edits=[miscount]) as endpoint:
        generations = await sample(endpoint, n=2)
    assert {g.capability for g in generations} == {"eval-only"}
    assert {g.logprobs for g in generations} == {None}
    assert "not usage.completion_tokens" in (generations[0].capability_note or "")


async def test_misaligned_logprobs_are_not_trained_on() -> None:
    def lose_a_logprob(answer: dict[str, Any]) -> None:
        answer["choices"][0]["logprobs"]["content"].pop()

    with ScriptedEndpoint("hi", edits=[lose_a_logprob]) as endpoint:
        [generation] = await sample(endpoint)
    assert (generation.capability, generation.capability_note) == ("eval-only", "3 token ids but 2 logprobs")


async def test_an_empty_completion_is_recorded_and_not_trained_on() -> None:
    with ScriptedEndpoint("", ignores=["return_token_ids"]) as endpoint:
        [generation] = await sample(endpoint)
    assert (generation.text, generation.capability) == ("", "eval-only")
    assert generation.capability_note == "the completion is empty"


async def test_tool_calls_are_asked_for_and_recorded() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    with ScriptedEndpoint({"content": None, "tool_calls": [call]}) as endpoint:
        policy = OpenAIPolicy(endpoint.url, endpoint.model)
        [generation] = await policy.sample(MESSAGES, tools=[TOOL])
        await policy.aclose()
    assert endpoint.received[0].body["tools"] == [TOOL]
    assert (generation.text, generation.tool_calls, generation.finish_reason) == ("", (call,), "tool_calls")


@pytest.mark.parametrize(
    ("served", "version", "recorded"),
    [("qwen", None, "v0000"), ("qwen@v0007", None, "v0007"), ("qwen", "v0003", "v0003"), ("a@b", None, "v0000")],
)
async def test_the_version_that_sampled_is_stamped(served: str, version: str | None, recorded: str) -> None:
    with ScriptedEndpoint("hi", model=served) as endpoint:
        [generation] = await sample(endpoint, version=version)
    assert (generation.model, generation.policy_version) == (served, recorded)


async def test_the_stamp_is_of_the_model_that_answered() -> None:
    with ScriptedEndpoint("hi", edits=[edited({"model": "scripted@v0002"})]) as endpoint:
        [generation] = await sample(endpoint)
    assert generation.policy_version == versions.served_version("scripted@v0002") == "v0002"


@pytest.mark.parametrize(
    "wrong", [{"choices": []}, {"choices": None}, {"choices": "x"}, {"choices": [{}]}, {"choices": [3]}]
)
async def test_an_answer_that_is_no_chat_completion_is_refused(wrong: dict[str, Any]) -> None:
    spoiled = ScriptedEndpoint("hi", edits=[edited(wrong)])
    with spoiled as endpoint, pytest.raises(ProtocolError, match="which is not a chat completion"):
        await sample(endpoint, max_tries=1)
    assert len(endpoint.received) == 1


def test_sampling_is_checked_and_sent() -> None:
    assert Sampling(seed=3, stop=("\n",), extra={"top_k": 5}).body() == {
        "temperature": 1.0,
        "top_p": 1.0,
        "max_tokens": 512,
        "seed": 3,
        "stop": ["\n"],
        "top_k": 5,
    }
    assert not {"seed", "stop"} & Sampling().body().keys()
    for wrong in ({"temperature": -1}, {"top_p": 0}, {"max_tokens": 0}, {"topp": 1}):
        with pytest.raises(ValidationError):
            Sampling.model_validate(wrong)


def test_one_policy_serves_several_event_loops_and_sync_callers() -> None:
    with ScriptedEndpoint("hi") as endpoint:
        policy = OpenAIPolicy(endpoint.url, endpoint.model)

        async def once() -> str:
            [generation] = await policy.sample(MESSAGES)
            return generation.text

        async def once_and_close() -> str:
            try:
                return await once()
            finally:
                await policy.aclose()

        assert [asyncio.run(once_and_close()) for _ in range(2)] == ["hi", "hi"]
        assert [run_sync(once()), run_sync(once_and_close())] == ["hi", "hi"]


def connections(endpoint: ScriptedEndpoint) -> int:
    """Open connections of this process to the endpoint."""
    port = int(endpoint.url.removesuffix("/v1").rpartition(":")[2])
    found = psutil.Process().net_connections("tcp")
    return sum(c.status == psutil.CONN_ESTABLISHED and bool(c.raddr) and c.raddr.port == port for c in found)


def test_close_ends_what_invoke_opened() -> None:
    with ScriptedEndpoint("right") as endpoint:
        policy = OpenAIPolicy(endpoint.url, endpoint.model)
        graph = build_graph(policy=policy, verifier=lambda task, answer: answer == "right").compile()
        task = Task(messages=({"role": "user", "content": "?"},))
        assert graph.invoke({"task": task.model_dump(mode="json")})["passed"]
        assert connections(endpoint) == 1
        policy.close()
        assert connections(endpoint) == 0
        policy.close()  # once more is harmless


async def test_a_policy_is_an_async_context_manager() -> None:
    with ScriptedEndpoint("hi") as endpoint:
        async with OpenAIPolicy(endpoint.url, endpoint.model) as policy:
            [generation] = await policy.sample(MESSAGES)
            assert connections(endpoint) == 1
        assert connections(endpoint) == 0
    assert generation.text == "hi"


async def test_a_failure_closes_the_policy_too() -> None:
    async def fail(endpoint: ScriptedEndpoint) -> None:
        async with OpenAIPolicy(endpoint.url, endpoint.model) as policy:
            await policy.sample(MESSAGES)
            raise ZeroDivisionError

    with ScriptedEndpoint("hi") as endpoint:
        with pytest.raises(ZeroDivisionError):
            await fail(endpoint)
        assert connections(endpoint) == 0


def test_both_policies_are_policies() -> None:
    assert isinstance(OpenAIPolicy("http://127.0.0.1:1/v1", "m"), Policy)
    assert isinstance(ScriptedPolicy("hi"), Policy)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"temperature": 0.7}, "temperature = 0.7"),
        ({"temperature": 0}, "temperature = 0"),
        ({"top_p": 0.95}, "top_p = 0.95"),
        ({"extra": {"top_p": 0.9, "top_k": 20}}, "top_p = 0.9, top_k = 20"),
        ({"extra": {"repetition_penalty": 1.05}}, "repetition_penalty = 1.05"),
        ({"extra": {"logit_bias": {"7": -100}}}, "logit_bias"),
        ({"extra": {"min_tokens": 5}}, "min_tokens = 5"),
        ({"extra": {"response_format": {"type": "json_object"}}}, "under a grammar"),
        ({"extra": {"tool_choice": "required"}}, "under a grammar"),
        ({"extra": {"tool_choice": {"type": "function", "function": {"name": "f"}}}}, "under a grammar"),
        ({"extra": {"structured_outputs": {"choice": ["a", "b"]}}}, "under a grammar"),
        ({"extra": {"tools": [TOOL], "parallel_tool_calls": False}}, "under a grammar"),
        ({"extra": {"tools": [{**TOOL, "function": {**TOOL["function"], "strict": True}}]}}, "under a grammar"),
    ],
)
async def test_what_was_not_sampled_as_its_logprobs_say_is_not_trained_on(
    settings: dict[str, Any], reason: str
) -> None:
    with ScriptedEndpoint("hi") as endpoint:
        [generation] = await sample(endpoint, sampling=Sampling(**settings))
    assert generation.capability == "eval-only"
    assert reason in (generation.capability_note or "")
    assert generation.token_ids


@pytest.mark.parametrize(
    "extra",
    [
        {"response_format": {"type": "text"}},
        {"tool_choice": "auto", "tools": [TOOL]},
        {"tool_choice": "none", "tools": [TOOL], "parallel_tool_calls": False},
        {"top_k": 0, "min_tokens": 0, "logit_bias": {}, "temperature": 1},
        {"ignore_eos": True},
    ],
)
async def test_what_changes_nothing_is_trained_on(extra: dict[str, Any]) -> None:
    with ScriptedEndpoint("hi") as endpoint:
        [generation] = await sample(endpoint, sampling=Sampling(extra=extra))
    assert (generation.capability, generation.capability_note) == ("trainable-exact", None)


@pytest.mark.parametrize("refuses", [["top_k"], ["top_k", "min_p", "repetition_penalty"], [*NEUTRAL]])
async def test_a_refused_neutral_value_is_recorded_as_unknown(refuses: list[str]) -> None:
    with ScriptedEndpoint("hi", refuses=refuses) as endpoint:
        async with OpenAIPolicy(endpoint.url, endpoint.model) as policy:
            for _ in range(2):
                [generation] = await policy.sample(MESSAGES)
    assert len(endpoint.received) == 2 + len(refuses)
    assert {field for field in NEUTRAL if generation.sampling[field] is None} == {*refuses}
    assert generation.capability == "trainable-exact"
    assert f"the server decided on {', '.join(refuses)}" in (generation.capability_note or "")


async def test_all_fields_that_one_refusal_names_are_left_out_at_once() -> None:
    refusal = Fault(400, '{"error": {"message": "Unrecognized request arguments supplied: min_p, top_k"}}')
    with ScriptedEndpoint("hi", faults=[refusal]) as endpoint:
        await sample(endpoint)
    assert [NEUTRAL.keys() - received.body.keys() for received in endpoint.received] == [set(), {"min_p", "top_k"}]


async def test_neutral_values_are_left_out_if_a_refusal_names_nothing() -> None:
    refusal = Fault(400, '{"error": {"message": "Penalty is not enabled for this model"}}')
    with ScriptedEndpoint("hi", faults=[refusal, None, refusal]) as endpoint:
        async with OpenAIPolicy(endpoint.url, endpoint.model) as policy:
            [generation] = await policy.sample(MESSAGES)
            with pytest.raises(RequestError, match="Penalty is not enabled"):  # it has taken such a request before
                await policy.sample(MESSAGES)
    assert [NEUTRAL.keys() & received.body.keys() for received in endpoint.received] == [NEUTRAL.keys(), set(), set()]
    assert {generation.sampling[field] for field in NEUTRAL} == {None}
    assert "logprobs" in endpoint.received[-1].body


def test_sampling_takes_its_own_fields_out_of_extra() -> None:
    assert Sampling(extra={"seed": 3, "top_k": 5}) == Sampling(seed=3, extra={"top_k": 5})
