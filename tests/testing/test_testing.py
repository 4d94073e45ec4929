"""The fakes keep their word: tests that use them prove something only if they do."""

from __future__ import annotations

import httpx
import pytest

from r3agent.errors import ConfigError
from r3agent.records.prompts import BLIND_RETRY, REFLECT, RETRY
from r3agent.records.trajectory import Generation, Message
from r3agent.testing import DROPPED, HANG, ScriptedEndpoint, ScriptedPolicy, rate_limited
from r3agent.testing.endpoint import KEPT

HELLO: list[Message] = [{"role": "user", "content": "hello"}]
BODY = {"model": "scripted", "messages": HELLO}


def asked(request: str) -> list[Message]:
    return [*HELLO, {"role": "assistant", "content": "hi"}, {"role": "user", "content": request}]


async def texts(policy: ScriptedPolicy, messages: list[Message], n: int = 1) -> list[str]:
    return [generation.text for generation in await policy.sample(messages, n=n)]


async def test_a_policy_answers_by_request() -> None:
    policy = ScriptedPolicy({"attempt": "a", "reflect": "b", "retry": "c", "blind_retry": "d"})
    assert [await texts(policy, m) for m in (HELLO, asked(REFLECT), asked(RETRY), asked(BLIND_RETRY))] == [
        ["a"],
        ["b"],
        ["c"],
        ["d"],
    ]
    assert [call.asked for call in policy.calls] == ["attempt", "reflect", "retry", "blind_retry"]


async def test_a_list_is_taken_in_order_whoever_asks() -> None:
    policy = ScriptedPolicy(["1", "2", "3"])
    assert await texts(policy, HELLO, n=2) == ["1", "2"]
    assert await texts(policy, asked(REFLECT)) == ["3"]
    with pytest.raises(ConfigError, match="the script ends after 3 replies"):
        await policy.sample(HELLO)


async def test_a_function_sees_the_conversation_and_may_be_async() -> None:
    async def shout(messages: object) -> str:
        return str(messages).upper()

    assert await texts(ScriptedPolicy(lambda messages: messages[-1]["content"]), HELLO) == ["hello"]
    assert await texts(ScriptedPolicy(shout), HELLO) == [str(HELLO).upper()]


async def test_a_scripted_error_is_raised_and_a_missing_script_is_one() -> None:
    with pytest.raises(OSError, match="gone"):
        await ScriptedPolicy(OSError("gone")).sample(HELLO)
    with pytest.raises(ConfigError, match=r"says nothing to 'reflect', only to \['attempt'\]"):
        await ScriptedPolicy({"attempt": "a"}).sample(asked(REFLECT))


@pytest.mark.parametrize(("exact", "capability"), [(True, "trainable-exact"), (False, "trainable-retokenised")])
async def test_a_policy_gives_tokens_if_it_is_exact(exact: bool, capability: str) -> None:
    [generation] = await ScriptedPolicy("ab", exact=exact).sample(HELLO)
    assert generation.capability == capability
    assert generation.token_ids == ((97, 98, 256) if exact else None)
    assert generation.completion_tokens == 3


async def test_a_whole_generation_is_given_as_it_is() -> None:
    generation = Generation(text="x", model="other")
    assert await ScriptedPolicy(generation).sample(HELLO) == [generation]


async def test_a_policy_knows_that_it_was_closed() -> None:
    policy = ScriptedPolicy("x")
    await policy.aclose()
    assert policy.closed


def post(endpoint: ScriptedEndpoint, timeout_s: float = 60, **fields: object) -> httpx.Response:
    return httpx.post(f"{endpoint.url}/chat/completions", json={**BODY, **fields}, timeout=timeout_s)


def test_an_endpoint_gives_what_is_asked_for_and_no_more() -> None:
    with ScriptedEndpoint("hi") as endpoint:
        plain, full = post(endpoint).json(), post(endpoint, n=2, logprobs=True, return_token_ids=True).json()
        models = httpx.get(f"{endpoint.url}/models").json()
    assert plain["choices"][0]["logprobs"] is None
    assert "token_ids" not in plain["choices"][0]
    assert [choice["token_ids"] for choice in full["choices"]] == [[104, 105, 256]] * 2
    assert full["usage"]["completion_tokens"] == 6
    assert [model["id"] for model in models["data"]] == ["scripted"]


def test_faults_come_in_order_and_then_no_more() -> None:
    with ScriptedEndpoint("hi", faults=[rate_limited(1.5), None, DROPPED, HANG]) as endpoint:
        limited = post(endpoint)
        assert (limited.status_code, limited.headers["Retry-After"]) == (429, "1.5")
        assert post(endpoint).status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            post(endpoint)
        with pytest.raises(httpx.ReadTimeout):
            post(endpoint, timeout_s=0.2)
        assert post(endpoint).status_code == 200
    assert len(endpoint.received) == 5


def test_an_endpoint_keeps_the_last_requests() -> None:
    with ScriptedEndpoint("hi") as endpoint, httpx.Client() as client:
        for i in range(2 * KEPT + 1):
            client.post(f"{endpoint.url}/chat/completions", json={**BODY, "seed": i})
    assert [received.body["seed"] for received in endpoint.received] == [*range(KEPT + 1, 2 * KEPT + 1)]


def test_an_endpoint_refuses_what_it_is_told_to() -> None:
    with ScriptedEndpoint("hi", refuses=["n"]) as endpoint:
        assert post(endpoint, n=2).json()["error"]["message"] == "Unrecognized request argument supplied: n"
        assert post(endpoint, model="other").status_code == 404
        assert httpx.get(f"{endpoint.url}/engines").status_code == 404
    with ScriptedEndpoint("hi", api_key="k") as endpoint:
        assert post(endpoint).status_code == 401


def test_waiting_for_clients_that_never_come_ends() -> None:
    with ScriptedEndpoint("hi") as endpoint, pytest.raises(TimeoutError, match="0 clients hang after 0 s, not 1"):
        endpoint.wait_for_hanging(1, timeout_s=0)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_an_endpoint_cuts_off_a_text_at_the_limit(field: str) -> None:
    with ScriptedEndpoint("hello") as endpoint:
        cut = post(endpoint, logprobs=True, return_token_ids=True, **{field: 3}).json()
        whole = post(endpoint, **{field: 6}).json()
    choice = cut["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("hel", "length")
    assert len(choice["token_ids"]) == len(choice["logprobs"]["content"]) == cut["usage"]["completion_tokens"] == 3
    assert (whole["choices"][0]["finish_reason"], whole["usage"]["completion_tokens"]) == ("stop", 6)
    with ScriptedEndpoint("hello", ignores=[field]) as endpoint:
        assert post(endpoint, **{field: 3}).json()["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("body", [[1], 3, "{}", {"model": "scripted"}])
def test_an_endpoint_refuses_a_body_that_is_no_request(body: object) -> None:
    with ScriptedEndpoint("a") as endpoint:
        refused = httpx.post(f"{endpoint.url}/chat/completions", json=body)
        assert (refused.status_code, endpoint.received) == (400, [])
    assert "no JSON object with" in refused.json()["error"]["message"]
