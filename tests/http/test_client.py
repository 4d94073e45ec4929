"""Clients send what their settings say, and read streams event by event."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
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


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
async def test_stream_joins_the_data_lines_of_an_event(end: str) -> None:
    lines = ['data: {"a":', "data: [-Infinity]}", "", 'data: {"b": 1}', "", "data: [DONE] x", ""]
    assert await stream("".join(line + end for line in lines)) == [{"a": [-math.inf]}, {"b": 1}]


async def test_stream_reads_a_crlf_that_comes_in_two_pieces() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b'data: {"a":\r', b"\ndata: 1}\r\n\r", b"\n"):
            yield piece

    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=pieces()))
    chunks: list[Any] = []
    async with httpx.AsyncClient(transport=transport) as client:
        await http.stream(client, httpx.URL("http://h/v1"), {}, chunks.append)
    assert chunks == [{"a": 1}]


async def test_stream_raises_the_error_of_an_event() -> None:
    with pytest.raises(ServerError, match="502 inside a 200: out of memory"):
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


def test_headers_have_the_custom_ones_which_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Team: a:b \n\nno header\nauthorization: Basic x")
    with http.ClientSettings(timeout_s=5, api_key="sk-1").open() as client:
        assert client.headers["X-Team"] == "a:b"
        assert client.headers.get_list("Authorization") == ["Basic x"]


def test_headers_have_no_white_space_around_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1 \n")
    with http.ClientSettings(timeout_s=5, api_key=" sk-1 \n").open() as client:
        assert client.headers["Authorization"] == "Bearer sk-1"
        assert client.headers["OpenAI-Organization"] == "org-1"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OPENAI_ORG_ID", "sécret"),
        ("OPENAI_PROJECT_ID", "se\ncret"),
        ("OPENAI_CUSTOM_HEADERS", "X-A: sécret"),
        ("OPENAI_CUSTOM_HEADERS", "se cret: x"),
    ],
)
def test_a_variable_that_no_header_can_carry_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=variable) as refused:
        http.ClientSettings(timeout_s=5)
    assert "cret" not in str(refused.value)


@pytest.mark.parametrize("key", ["sk-sécret", "sk-\nsecret"])
def test_a_key_that_no_header_can_carry_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="API key") as refused:
        http.ClientSettings(timeout_s=5, api_key=key)
    assert "cret" not in str(refused.value)
