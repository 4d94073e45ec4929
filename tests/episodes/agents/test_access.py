"""The policy's way to its server, which the requests of its agents take too."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, OpenAI

from r3agent import ConfigError, OpenAIPolicy, build_graph
from r3agent.episodes.agents.program import Program
from r3agent.errors import EndpointError
from r3agent.testing import Fault, ScriptedEndpoint
from r3agent.testing.faults import DROPPED, MALFORMED_JSON, rate_limited
from tests.episodes.agents.endpoints import TASK, found, trajectory
from tests.support.access import Proxy, make_certificate, tls_front

SCRIPT = """
import json, os, urllib.request
body = json.dumps({"model": "policy", "messages": [{"role": "user", "content": "6 * 7?"}]}).encode()
request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body)
with urllib.request.urlopen(request) as answer:
    print(json.load(answer)["choices"][0]["message"]["content"])
"""
"""Program whose client tries once."""


async def function(messages: list[Any], client: AsyncOpenAI) -> Any:
    return (await client.chat.completions.create(model="policy", messages=messages)).choices[0].message


def sync(messages: list[Any], client: OpenAI) -> Any:
    return client.chat.completions.create(model="policy", messages=messages).choices[0].message


@pytest.fixture
def program() -> Iterator[Program]:
    made = Program([sys.executable, "-c", SCRIPT])
    yield made
    made.close()


@pytest.fixture(params=[function, sync, "program"])
def agent(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("program") if request.param == "program" else request.param


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    made = Proxy()
    yield made
    made.close()


async def run(agent: Any, url: str, **settings: Any) -> Any:
    async with OpenAIPolicy(url, "scripted", api_key="sk-policy1", **settings) as policy:
        graph = build_graph(policy=policy, verifier=found, agent=agent, max_attempts=1).compile()
        [span] = trajectory(await graph.ainvoke(TASK)).spans
    return span


async def test_agents_ask_through_the_proxy(agent: Any, proxy: Proxy) -> None:
    with ScriptedEndpoint("a ball") as endpoint:
        span = await run(agent, endpoint.url, proxy=proxy.url)
    assert (span.text, span.capability) == ("a ball", "trainable-exact")
    assert proxy.asked == ["/v1/chat/completions"]


async def test_agents_trust_the_certificate(agent: Any, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    with ScriptedEndpoint("a ball") as endpoint:
        async with tls_front(endpoint, certificate) as url:
            assert (await run(agent, url, verify=str(certificate))).text == "a ball"
            assert (await run(agent, url, verify=False)).text == "a ball"
            with pytest.raises(EndpointError):
                await run(agent, url, max_tries=1)


async def test_own_client_sends_the_requests_of_a_function() -> None:
    seen: list[httpx.Request] = []

    async def hook(request: httpx.Request) -> None:
        seen.append(request)

    with ScriptedEndpoint("a ball") as endpoint:
        async with httpx.AsyncClient(headers={"X-Team": "a"}, event_hooks={"request": [hook]}) as client:
            assert (await run(function, endpoint.url, http_client=client)).text == "a ball"
            assert not client.is_closed
    assert [(r.headers["X-Team"], r.headers["Authorization"]) for r in seen] == [("a", "Bearer sk-policy1")]


@pytest.mark.parametrize("agent", [sync, "program"], indirect=True)
async def test_own_client_that_cannot_send_is_refused(agent: Any) -> None:
    with ScriptedEndpoint("a ball") as endpoint:
        async with httpx.AsyncClient() as client:
            with pytest.raises(ConfigError, match=r"http_client.*give the policy proxy= and verify="):
                await run(agent, endpoint.url, http_client=client)
    assert endpoint.received == []


BUSY = [
    rate_limited(0.1),
    Fault(503),
    DROPPED,
    MALFORMED_JSON,
    Fault(body="{}"),
    Fault(body='{"error": {"message": "no", "code": 500}}'),
]


@pytest.mark.parametrize("fault", BUSY, ids=lambda fault: f"{fault.status}{fault.kind}{fault.body}")
async def test_program_without_retries_has_those_of_the_policy(program: Program, fault: Fault) -> None:
    with ScriptedEndpoint("a ball", faults=[fault]) as endpoint:
        span = await run(program, endpoint.url)
    assert (span.text, span.capability) == ("a ball", "trainable-exact")
    assert len(endpoint.received) == 2


async def test_program_is_told_of_what_retries_do_not_help(program: Program) -> None:
    with ScriptedEndpoint("a ball", faults=[Fault(503)] * 2) as endpoint, pytest.raises(EndpointError, match="503"):
        await run(program, endpoint.url, max_tries=2)
    assert len(endpoint.received) == 2


async def test_program_is_not_blamed_for_an_endpoint_that_is_away(program: Program) -> None:
    async with OpenAIPolicy("http://127.0.0.1:9/v1", "scripted") as policy:
        graph = build_graph(policy=policy, verifier=found, agent=program, try_timeout_s=6.0).compile()
        with pytest.raises(EndpointError, match="cannot be reached"):
            await graph.ainvoke(TASK)
