"""Ways to a server: proxies, certificates of one's own, and the application's own client."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from r3agent.deploy import deploy
from r3agent.doctor import diagnose
from r3agent.errors import ConfigError, DeployError, EndpointError
from r3agent.policy import OpenAIPolicy
from r3agent.records.trajectory import Task
from r3agent.run.config import load_config, to_toml
from r3agent.store.registry import Registry
from r3agent.testing import ScriptedEndpoint
from r3agent.verifiers import close, find_verifier, judge
from tests.support.access import PASSWORD, Proxy, make_certificate, tls_front
from tests.support.trees import span

MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    proxy = Proxy()
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"))


async def test_proxy_carries_all_requests(proxy: Proxy) -> None:
    with ScriptedEndpoint("hi") as endpoint:
        async with OpenAIPolicy(endpoint.url, endpoint.model, proxy=proxy.url) as policy:
            assert [g.text for g in await policy.sample(MESSAGES)] == ["hi"]
            assert [g.text for g in await policy.sample(MESSAGES, on_delta=lambda *_: None)] == ["hi"]
        assert proxy.asked == ["/v1/chat/completions"] * 2
        diagnosis = await diagnose(endpoint.url, proxy=proxy.url)
        assert diagnosis.tier is not None
    assert "/v1/models" in proxy.asked


async def test_judge_asks_through_its_proxy(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROXY_PASSWORD", PASSWORD)
    with ScriptedEndpoint('{"passed": true, "explanation": "good"}') as endpoint:
        given = f"http://me:$PROXY_PASSWORD@{proxy.address}"
        verifier = find_verifier("llm_judge", base_url=endpoint.url, model=endpoint.model, proxy=given)
        asked = span("attempt", text="42")
        [verdict] = await judge(verifier, Task(messages=({"role": "user", "content": "6 * 7?"},)), [asked])
        await close(verifier)
    assert verdict.passed
    assert proxy.asked == ["/v1/chat/completions"]


async def test_proxy_that_refuses_is_named_without_its_password(proxy: Proxy) -> None:
    with ScriptedEndpoint("hi") as endpoint:
        wrong = proxy.url.replace("me:", "you:")
        async with OpenAIPolicy(endpoint.url, endpoint.model, proxy=wrong, max_tries=1) as policy:
            with pytest.raises(Exception, match="407") as raised:
                await policy.sample(MESSAGES)
    assert PASSWORD not in str(raised.value) + repr(policy)
    assert endpoint.received == []


def test_deploy_asks_through_the_proxy(proxy: Proxy, tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.add_base("tiny", "base")
    with ScriptedEndpoint("hi") as endpoint, pytest.raises(DeployError):
        deploy("v0000", registry=registry, base_url=endpoint.url, proxy=f"http://{proxy.address}")
    assert proxy.asked


async def test_certificate_of_ones_own_is_trusted_if_asked_to(certificate: Path) -> None:
    with ScriptedEndpoint("hi") as endpoint:
        async with tls_front(endpoint, certificate) as url:
            for verify in (str(certificate), False, ssl.create_default_context(cafile=certificate)):
                async with OpenAIPolicy(url, endpoint.model, verify=verify) as policy:
                    assert len(await policy.sample(MESSAGES)) == 1
            async with OpenAIPolicy(url, endpoint.model, max_tries=1) as policy:
                with pytest.raises(EndpointError, match=r"(?i)certificate verify failed"):
                    await policy.sample(MESSAGES)
    assert len(endpoint.received) == 3


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_file_of_no_certificates_is_refused(content: str | None, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=r"verify = .*ca\.pem.*give a file of certificates"):
        OpenAIPolicy("https://localhost/v1", "m", verify=str(file))


async def test_own_client_sends_the_requests_and_stays_open() -> None:
    seen: list[httpx.Request] = []

    async def hook(request: httpx.Request) -> None:
        seen.append(request)

    with ScriptedEndpoint("hi") as endpoint:
        async with httpx.AsyncClient(headers={"X-Team": "a"}, event_hooks={"request": [hook]}) as client:
            async with OpenAIPolicy(endpoint.url, endpoint.model, api_key="sk-1", http_client=client) as policy:
                await policy.sample(MESSAGES)
                await policy.sample(MESSAGES, on_delta=lambda *_: None)
            assert not client.is_closed
            client.headers["Authorization"] = "Bearer sk-2"
            await OpenAIPolicy(endpoint.url, endpoint.model, http_client=client).sample(MESSAGES)
    assert [request.headers["Authorization"] for request in seen] == ["Bearer sk-1"] * 2 + ["Bearer sk-2"]
    assert {request.headers["X-Team"] for request in seen} == {"a"}


@pytest.mark.parametrize("settings", [{"proxy": "http://p:1"}, {"verify": False}])
def test_own_client_has_its_own_proxy_and_certificates(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="and http_client: a client has its own"):
        OpenAIPolicy("http://h/v1", "m", http_client=httpx.AsyncClient(), **settings)


@pytest.mark.parametrize("url", [f"http://me:{PASSWORD}@p:1", f"http://$USER:{PASSWORD}@p:1", f"{PASSWORD}@p:1"])
def test_password_of_a_proxy_is_never_stored(url: str) -> None:
    with pytest.raises(ConfigError, match=r"policy\.proxy.*put it into an environment variable") as raised:
        load_config(None, {"policy.proxy": url})
    assert PASSWORD not in str(raised.value)


def test_settings_of_a_run_take_the_proxy_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "r3.toml"
    file.write_text(to_toml(load_config(None, {"policy.proxy": "http://me:$PW@p:1", "policy.verify": False})))
    monkeypatch.setenv("PW", PASSWORD)
    access = load_config(file, {}).policy.access()
    assert (access["proxy"], access["verify"]) == (f"http://me:{PASSWORD}@p:1", False)
    monkeypatch.delenv("PW")
    with pytest.raises(ConfigError, match=r"policy\.proxy: the environment variable PW is not set"):
        load_config(file, {}).policy.access()
