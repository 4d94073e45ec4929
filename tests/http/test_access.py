"""Ways to a server: proxies, certificates of one's own, and the application's own client."""

from __future__ import annotations

import asyncio
import base64
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
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
from tests.support.trees import span

MESSAGES = [{"role": "user", "content": "hello"}]
PASSWORD = "open-sesame"


class Proxy:
    """Proxy of HTTP requests that asks for a password."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._handle, "127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self._server.sockets[0].getsockname()[1]  # noqa: UP031
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://me:{PASSWORD}@{self.address}"

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            line, _, headers = head.partition(b"\r\n")
            method, target, _ = line.decode().split()
            url = httpx.URL(target)
            self.asked.append(url.path)
            wanted = base64.b64encode(f"me:{PASSWORD}".encode())
            if wanted not in headers:
                writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                return
            length = int(httpx.Headers(_pairs(headers)).get("content-length", 0))
            content = await reader.readexactly(length)
            up_reader, up_writer = await asyncio.open_connection(url.host, url.port)
            rest = headers.replace(b"keep-alive", b"close")
            up_writer.write(f"{method} {url.raw_path.decode()} HTTP/1.1\r\n".encode() + rest + content)
            writer.write((await up_reader.read()).replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
            up_writer.close()
        finally:
            writer.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._server.close()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


def _pairs(headers: bytes) -> list[tuple[bytes, bytes]]:
    return [tuple(line.split(b": ", 1)) for line in headers.split(b"\r\n") if line]  # type: ignore[misc]


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    proxy = Proxy()
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout key.pem -out cert.pem"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=DNS:localhost"], cwd=folder, check=True, capture_output=True
    )
    return folder / "cert.pem"


@asynccontextmanager
async def tls_front(endpoint: ScriptedEndpoint, certificate: Path) -> AsyncIterator[str]:
    """Serve an endpoint with TLS and a certificate that nobody has signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    up = httpx.URL(endpoint.url)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while content := await reader.read(2**16):
            writer.write(content)
        writer.close()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(up.host, up.port)
        await asyncio.gather(copy(reader, up_writer), copy(up_reader, writer), return_exceptions=True)

    server = await asyncio.start_server(handle, "localhost", 0, ssl=context)
    async with server:
        yield f"https://localhost:{server.sockets[0].getsockname()[1]}/v1"


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
