"""Requests to models that refuse fields: what is left out, what is recorded, and what is an error."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

import pytest

from r3agent.errors import AccessError, RequestError
from r3agent.policy import OpenAIPolicy, Sampling
from r3agent.records.sampling import NEUTRAL
from r3agent.records.trajectory import Generation
from r3agent.testing import Fault, ScriptedEndpoint

MESSAGES = [{"role": "user", "content": "6 * 7?"}]
NO_PROVIDER = "No endpoints found that can handle the requested parameters."
Rule = Callable[[Mapping[str, Any]], Fault | None]


def refusal(message: str, status: int = 400, **more: Any) -> Fault:
    return Fault(status, json.dumps({"error": {"message": message, **more}}))


def without(*fields: str, status: int = 400, message: str = "Unsupported parameter: '{}' is not supported.") -> Rule:
    """Refuse each of the fields, as long as it is sent."""
    return lambda body: next((refusal(message.format(f), status) for f in fields if f in body), None)


def one_of_pair(body: Mapping[str, Any]) -> Fault | None:
    both = "`temperature` and `top_p` cannot both be specified for this model. Please use only one."
    return refusal(both) if {"temperature", "top_p"} <= body.keys() else None


def default_temperature(body: Mapping[str, Any]) -> Fault | None:
    message = (
        f"Unsupported value: 'temperature' does not support {body.get('temperature')}. Only the default (1) value."
    )
    return refusal(message, param="temperature") if body.get("temperature", 1) != 1 else None


async def ask(endpoint: ScriptedEndpoint, **settings: Any) -> tuple[Generation, list[str]]:
    """Second generation of a policy, and the texts that were streamed of both."""
    told: list[str] = []
    async with OpenAIPolicy(
        endpoint.url, endpoint.model, max_tries=1, sampling=settings.pop("sampling", None)
    ) as policy:
        on_delta = (lambda i, text: told.append(text)) if settings.pop("stream", False) else None
        for _ in range(2):
            generation, *_ = await policy.sample(MESSAGES, on_delta=on_delta, **settings)
    return generation, told


@pytest.mark.parametrize(
    ("rule", "sampling", "lost", "n_refusals"),
    [
        (without("max_tokens"), {}, {}, 1),
        (without("max_tokens", "max_completion_tokens"), {}, {"max_tokens"}, 2),
        (without("max_completion_tokens"), {"extra": {"max_completion_tokens": 7}}, {}, 1),
        (without("max_tokens"), {"extra": {"max_completion_tokens": 7}}, {}, 0),
        (without("temperature", message="`{}` is deprecated for this model."), {}, {"temperature"}, 1),
        (without("temperature", status=422), {"temperature": 0.7}, {"temperature"}, 1),
        (without("temperature", "top_p"), {}, {"temperature", "top_p"}, 2),
        (without("stop", "seed"), {"stop": ("x",), "seed": 3}, {"stop", "seed"}, 2),
        (without("logprobs", status=403, message="You are not allowed to request {}"), {}, {"logprobs"}, 1),
        (without("top_k", status=500, message="got an unexpected keyword argument '{}'"), {}, {"top_k"}, 1),
        (without("top_k"), {"extra": {"top_k": 20}}, {"top_k"}, 1),
        (one_of_pair, {}, {"top_p"}, 1),
        (one_of_pair, {"temperature": 0.7, "top_p": 0.9}, {"top_p"}, 1),
        (one_of_pair, {"top_p": 0.9}, {"temperature"}, 1),
        (one_of_pair, {"top_p": None}, {}, 0),
        (default_temperature, {}, {}, 0),
        (default_temperature, {"top_p": 0.9}, {}, 0),
        (without("logprobs", status=404, message=NO_PROVIDER), {}, {*NEUTRAL, "logprobs", "return_token_ids"}, 3),
        (without(*NEUTRAL, message="Bad Request"), {}, {*NEUTRAL}, 1),
    ],
)
async def test_refused_fields_are_left_out_remembered_and_recorded(
    rule: Rule, sampling: dict[str, Any], lost: Collection[str], n_refusals: int
) -> None:
    with ScriptedEndpoint("42", refuses=rule) as endpoint:
        generation, _ = await ask(endpoint, sampling=Sampling(**sampling))
    assert generation.text == "42"
    assert len(endpoint.received) == 2 + n_refusals
    recorded = generation.sampling
    assert {*recorded.get("refused", ())} == {*lost}
    assert {recorded[field] for field in {*lost} & recorded.keys()} <= {None}
    asked = Sampling(**sampling)
    kept = {"temperature": asked.temperature, "top_p": asked.top_p, "max_tokens": asked.max_tokens}
    assert {f: recorded[f] for f in kept} == {f: None if f in lost else value for f, value in kept.items()}


async def test_a_value_is_replaced_by_the_only_one_that_is_accepted() -> None:
    with ScriptedEndpoint("42", refuses=default_temperature) as endpoint:
        generation, _ = await ask(endpoint, sampling=Sampling(temperature=0.7))
    assert [r.body["temperature"] for r in endpoint.received] == [0.7, 1, 1]
    assert (generation.sampling["temperature"], generation.sampling["refused"]) == (1, ["temperature"])
    assert (generation.capability, generation.capability_note) == ("trainable-exact", None)


@pytest.mark.parametrize("field", ["stream", "stream_options"])
async def test_an_endpoint_that_refuses_to_stream_tells_the_text(field: str) -> None:
    with ScriptedEndpoint("42", refuses=[field]) as endpoint:
        generation, told = await ask(endpoint, stream=True)
    assert (generation.text, "".join(told)) == ("42", "4242")
    assert "refused" not in generation.sampling
    assert len(endpoint.received) == 3


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"temperature": 2.5}, "temperature: Input should be less than or equal to 2"),
        ({"max_tokens": 9999}, "max_tokens is too large: 9999. This model supports at most 4096 completion tokens"),
        ({}, "messages: at least one is required"),
        ({}, "the model does not support tools"),
    ],
)
async def test_a_refused_value_that_could_be_another_is_an_error(sampling: dict[str, Any], message: str) -> None:
    with (
        ScriptedEndpoint(refuses=lambda body: refusal(message)) as endpoint,
        pytest.raises(RequestError, match=message),
    ):
        await ask(endpoint, sampling=Sampling(**sampling))


async def test_a_refused_key_is_no_refused_field() -> None:
    rule = without("temperature", status=403, message="This key has no access to the model")
    with ScriptedEndpoint(refuses=rule) as endpoint, pytest.raises(AccessError, match="check the API key"):
        await ask(endpoint)
    assert len(endpoint.received) == 1


async def test_a_setting_that_is_left_out_is_a_warning_once(caplog: pytest.LogCaptureFixture) -> None:
    with ScriptedEndpoint("42", refuses=without("temperature", "seed", "top_k", "max_tokens")) as endpoint:
        await ask(endpoint, sampling=Sampling(temperature=0.7, seed=3, extra={"top_p": 1.0}))
    [record] = caplog.records
    assert "model 'scripted' refuses seed = 3, temperature = 0.7: from here on" in record.getMessage()


async def test_terms_are_of_one_model_at_one_server() -> None:
    with ScriptedEndpoint("42", refuses=["temperature"]) as endpoint:
        endpoint.adapters += ["scripted@v0001", "other"]
        async with OpenAIPolicy(endpoint.url, endpoint.model) as policy:
            for name in (endpoint.model, "scripted@v0001", "other"):
                await policy.asking(name).sample(MESSAGES)
    assert [r.body["model"] for r in endpoint.received if "temperature" in r.body] == ["scripted", "other"]


async def test_a_server_s_own_decision_is_no_setting_asked_for() -> None:
    with ScriptedEndpoint("42", refuses=["temperature"]) as endpoint:
        generation, _ = await ask(endpoint, sampling=Sampling(temperature=0.7))
    assert generation.capability == "trainable-exact"
    assert "the server decided on temperature; r3agent doctor tests" in (generation.capability_note or "")


def test_every_setting_can_be_left_to_the_server() -> None:
    none = Sampling(temperature=None, top_p=None, max_tokens=None)
    assert none.body() == {}
    assert Sampling.model_validate({"temperature": "none", "top_p": "none", "max_tokens": "none"}) == none
    assert Sampling(extra={"max_completion_tokens": 9}).body() == {
        "temperature": 1.0,
        "top_p": 1.0,
        "max_completion_tokens": 9,
    }
