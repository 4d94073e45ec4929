"""Endpoints behind gateways: queries, pasted routes and headers reach every route, and no secret is shown."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from r3agent.cli.main import main
from r3agent.deploy.server import Server
from r3agent.doctor import diagnose
from r3agent.errors import ConfigError, EndpointError, PolicyError, RequestError
from r3agent.policy import OpenAIPolicy
from r3agent.policy.endpoint import Endpoint
from r3agent.records.trajectory import Task
from r3agent.run.config import load_config, to_toml
from r3agent.verifiers import Answer, find_verifier
from tests.support.gateway import Gateway, gateway

MESSAGES = [{"role": "user", "content": "6 * 7?"}]
KEY = "open-sesame"
HEADERS = {"api-key": KEY, "x-team": "blue"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("GATEWAY_KEY", KEY)
    with gateway() as running:
        yield running


@pytest.mark.parametrize(
    ("base", "asked"),
    [
        ("/v1", "/v1/chat/completions"),
        ("/v1/", "/v1/chat/completions"),
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/v1beta/openai/", "/v1beta/openai/chat/completions"),
        (
            "/openai/deployments/m?api-version=2024-10-21",
            "/openai/deployments/m/chat/completions?api-version=2024-10-21",
        ),
        ("/o/m/chat/completions?api-version=3", "/o/m/chat/completions?api-version=3"),
        ("/v1?key=abc", "/v1/chat/completions?key=abc"),
    ],
)
async def test_a_policy_asks_the_route_with_query_and_headers(server: Gateway, base: str, asked: str) -> None:
    async with OpenAIPolicy(server.url + base, "m", headers=HEADERS) as policy:
        [generation] = await policy.sample(MESSAGES)
    assert server.last.path == asked
    assert HEADERS.items() <= server.last.headers.items()
    assert "authorization" not in server.last.headers
    assert KEY not in generation.model_dump_json() + repr(policy)


async def test_a_header_is_in_no_error(server: Gateway) -> None:
    server.error = {"error": {"message": f"bad key {KEY}"}}
    async with OpenAIPolicy(f"{server.url}/v1?key={KEY}", "m", headers=HEADERS) as policy:
        with pytest.raises(RequestError, match=r"bad key \[the header api-key\]") as raised:
            await policy.sample(MESSAGES)
    assert KEY not in str(raised.value)
    server.error = {"oops": f"bad {KEY}-2"}
    for headers, query in ((HEADERS, ""), ({}, f"?code={KEY}-2"), ({}, f"?sig={KEY}")):
        async with OpenAIPolicy(f"{server.url}/v1{query}", "m", headers=headers, max_tries=1) as policy:
            for server.status in (200, 400):
                with pytest.raises(PolicyError) as raised:
                    await policy.sample(MESSAGES)
                assert KEY not in str(raised.value)
    with pytest.raises(ConfigError, match="headers: a str") as refused:
        OpenAIPolicy(f"{server.url}/v1", "m", headers=KEY)  # type: ignore[arg-type]
    assert KEY not in str(refused.value)


async def test_the_key_of_the_environment_is_not_sent_beside_another(
    server: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    async with OpenAIPolicy(f"{server.url}/v1", "m", headers=HEADERS) as policy:
        await policy.sample(MESSAGES)
    assert "authorization" not in server.last.headers


async def test_weights_are_asked_for_with_query_and_headers(server: Gateway) -> None:
    settings: Any = {"api_key": "k", "concurrency": 1, "timeout_s": 5, "outage_s": 0, "max_tries": 1}
    endpoint = Endpoint(f"{server.url}/v1?a=b", headers=HEADERS, **settings)
    assert await endpoint.weight_version() == "v0003"
    await endpoint.aclose()
    assert (server.last.path, server.last.headers["x-team"]) == ("/weight_info?a=b", "blue")


def test_a_deploy_keeps_query_and_headers(server: Gateway) -> None:
    with Server(f"{server.url}/v1?a=b", headers=HEADERS) as client:
        assert client.models() == ["m"]
        assert client.at(f"{server.url}/v1?a=c").weight_version() == "v0003"
        client.pause()
    assert [seen.path for seen in server.seen] == ["/v1/models?a=b", "/weight_info?a=c", "/pause?a=b&mode=wait"]
    assert all(seen.headers["x-team"] == "blue" for seen in server.seen)


async def test_a_judge_sends_headers_and_records_no_secret(server: Gateway) -> None:
    judge: Any = find_verifier(
        "llm_judge", base_url=f"{server.url}/v1?a=b", model="m", headers={"api-key": "$GATEWAY_KEY"}
    )
    server.error = {"error": {"message": f"bad key {KEY}"}}
    with pytest.raises(RequestError, match=r"\[the header api-key\]"):
        await judge(Task(messages=tuple(MESSAGES)), Answer("42"))
    await judge.aclose()
    assert (server.last.path, server.last.headers["api-key"]) == ("/v1/chat/completions?a=b", KEY)
    with pytest.raises(ConfigError, match="environment variable"):
        find_verifier("llm_judge", base_url=f"{server.url}/v1", model="m", headers={"api-key": KEY})


async def test_a_diagnosis_keeps_query_and_headers(server: Gateway) -> None:
    diagnosis = await diagnose(f"{server.url}/v1/chat/completions?a=b", headers=HEADERS)
    assert diagnosis.base_url == f"{server.url}/v1?a=b"
    assert diagnosis.tier == "trainable-retokenised"
    assert all("a=b" in seen.path and seen.headers["api-key"] == KEY for seen in server.seen)
    assert KEY not in diagnosis.model_dump_json()


def test_the_command_line_takes_headers(server: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--header", "api-key: $GATEWAY_KEY", "--header", "x-team: blue", "--json"]
    assert main(["doctor", f"{server.url}/v1", *flags]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "m"
    assert HEADERS.items() <= server.last.headers.items()


def test_headers_of_settings_leave_secrets_in_the_environment(tmp_path: Path) -> None:
    config = load_config(None, {"policy.headers": ("x-a: b", "api-key: $GATEWAY_KEY")})
    assert config.policy.headers == {"x-a": "b", "api-key": "$GATEWAY_KEY"}
    file = tmp_path / "r3.toml"
    file.write_text(to_toml(config))
    assert load_config(file, {}) == config
    with pytest.raises(ConfigError, match=r'write api-key = "\$THAT_VARIABLE"') as refused:
        load_config(None, {"policy.headers": {"api-key": KEY}})
    assert KEY not in str(refused.value)


async def test_a_proxy_of_the_policy_overrides_that_of_the_environment(
    server: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    async with OpenAIPolicy("http://model.invalid/v1", "m", proxy=server.url) as policy:
        [generation] = await policy.sample(MESSAGES)
    assert (generation.text, server.last.path) == ("42", "http://model.invalid/v1/chat/completions")


async def test_a_certificate_is_checked_as_the_policy_says() -> None:
    context = ssl.create_default_context()
    policy = OpenAIPolicy("https://127.0.0.1:9/v1", "m", verify=context, max_tries=1)
    async with policy:
        with pytest.raises(EndpointError):
            await policy.sample(MESSAGES)
    with pytest.raises(ConfigError, match="verify"):
        OpenAIPolicy("https://127.0.0.1:9/v1", "m", verify="ca.pem")  # pyright: ignore[reportArgumentType]
