"""Clients send what their settings say, and read streams event by event."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from r3agent.errors import ConfigError
from r3agent.http import client as http
from r3agent.http.errors import ServerError
from r3agent.http.urls import ApiURL
from r3agent.testing import Fault
from r3agent.testing.http import JsonServer


async def stream(body: str) -> list[Any]:
    chunks: list[Any] = []
    with JsonServer(lambda *_: Fault(body=body, content_type="text/event-stream")) as server:
        async with http.ClientSettings(timeout_s=30).open_async() as client:
            url = ApiURL(f"{server.url}/v1").route("/chat/completions")
            await http.stream(client, url, {}, chunks.append)
    return chunks


async def test_stream_splits_at_line_feeds_only() -> None:
    events = ': comment\r\nevent: x\r\ndata: {"text": "a\u2028b\x85"}\r\n\r\ndata:{"n": 1}\n\ndata: [DONE]\n\n'
    assert await stream(events) == [{"text": "a\u2028b\x85"}, {"n": 1}]


async def test_stream_raises_the_error_of_an_event() -> None:
    with pytest.raises(ServerError, match="200 out of memory"):
        await stream('data: {"n": 1}\n\ndata: {"error": {"message": "out of memory"}}\n\n')


async def test_a_host_that_cannot_be_encoded_gives_no_answer() -> None:
    async with http.ClientSettings(timeout_s=30).open_async() as client:
        with pytest.raises(httpx.RequestError):
            await http.fetch(client, "GET", ApiURL("http://host..name/v1").route("/models"))


def test_headers_have_key_and_organisation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.delenv("OPENAI_PROJECT_ID", raising=False)
    with http.ClientSettings(timeout_s=5, api_key="sk-1").open() as client:
        assert client.headers["Authorization"] == "Bearer sk-1"
        assert client.headers["OpenAI-Organization"] == "org-1"
        assert "OpenAI-Project" not in client.headers
        assert client.timeout == httpx.Timeout(5)


@pytest.mark.parametrize("key", ["sk-sécret", "sk-secret\n"])
def test_a_key_that_no_header_can_carry_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="API key") as refused:
        http.ClientSettings(timeout_s=5, api_key=key)
    assert "cret" not in str(refused.value)
