"""Clients of a gateway get what the upstream sends; the record has the tokens too, and nothing that is secret."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import r3agent
from r3agent.gateway.server import Gateway
from r3agent.records.trajectory import Trajectory
from r3agent.testing import DROPPED, FAULTS, HANG, HTML_PAGE, SERVER_ERROR, Fault, ScriptedEndpoint, rate_limited
from tests.gateway.stub import HEAD, HTTP, Request, event, stub, whole

USER = {"role": "user", "content": "?"}
ASK: Any = {"model": "scripted", "messages": [USER]}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
KEY = "sk-a-secret-of-the-client"


def client(url: str, **settings: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, **settings)


def trajectory(gateway: Gateway, episode_id: str) -> Trajectory:
    found = HTTP.get(f"{gateway.url.removesuffix('/v1')}/episodes/{episode_id}")
    return Trajectory.model_validate(found.raise_for_status().json())


@contextmanager
def running(upstream: str, out: Path, **settings: Any) -> Iterator[Gateway]:
    with Gateway(upstream, out=out, **settings) as gateway:
        yield gateway


def outcomes(gateway: Gateway) -> dict[str, int]:
    """Read the number of calls by outcome from the metrics."""
    metrics = HTTP.get(f"{gateway.url.removesuffix('/v1')}/metrics").text
    return {kind: int(n) for kind, n in re.findall(r'calls_total\{outcome="(\w+)",.*} (\d+)', metrics)}


ASKS: dict[str, Any] = {
    "one": ASK,
    "n": {**ASK, "n": 2, "temperature": 1.0},
    "tools": {**ASK, "tools": TOOLS, "tool_choice": "auto"},
    "format": {**ASK, "response_format": {"type": "json_object"}, "max_tokens": 100},
    "logprobs": {**ASK, "logprobs": True, "top_logprobs": 1},
    "no logprobs": {**ASK, "logprobs": False},
    "ids": {**ASK, "extra_body": {"return_token_ids": True}},
}


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS.keys())
def test_answers_are_those_of_the_upstream(ask: Any, tmp_path: Path) -> None:
    def answer(body: Any, i: int) -> Any:
        return {"content": "", "tool_calls": [CALL]} if "tools" in body else f"the answer is {42 + i}"

    options = {"include_usage": True}
    with ScriptedEndpoint(answer) as endpoint, running(endpoint.url, tmp_path) as gateway:
        plain = client(endpoint.url)
        ours = client(gateway.url_of("e"))
        assert ours.chat.completions.create(**ask) == plain.chat.completions.create(**ask)
        for extra in ({}, {"stream_options": options}):
            chunks = list(ours.chat.completions.create(**ask, stream=True, **extra))
            assert chunks == list(plain.chat.completions.create(**ask, stream=True, **extra))
        spans = trajectory(gateway, "e").spans
    assert len(spans) == 3 * ask.get("n", 1)
    is_reshaped = "response_format" in ask
    assert {span.capability for span in spans} == {"eval-only" if is_reshaped else "trainable-exact"}
    assert spans[0].sampling == {
        key: ask[key] for key in ("temperature", "tool_choice", "response_format", "max_tokens") if key in ask
    }


async def test_async_clients_at_once_are_steps_of_their_own_episodes(tmp_path: Path) -> None:
    with (
        ScriptedEndpoint(lambda body, i: body["messages"][0]["content"]) as endpoint,
        running(endpoint.url, tmp_path) as gateway,
    ):

        async def agent(name: str) -> None:
            async with openai.AsyncOpenAI(base_url=gateway.url_of(name), api_key=KEY) as ours:
                messages: list[Any] = [{"role": "user", "content": name}]
                for _ in range(3):
                    answer = await ours.chat.completions.create(model="scripted", messages=messages)
                    text = answer.choices[0].message.content
                    assert text == name
                    messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "go on"}]

        names = [f"agent-{i}" for i in range(8)]
        await asyncio.gather(*map(agent, names))
    stored = {t.metadata["episode"]: t for t in r3agent.load(tmp_path)}
    assert sorted(stored) == names
    for name, found in stored.items():
        assert [span.text for span in found.spans] == [name] * 3
        assert [len(a_try.steps) for a_try in found.tries] == [3]


def test_refused_fields_are_left_out_and_remembered(tmp_path: Path) -> None:
    with (
        ScriptedEndpoint("42", refuses=["return_token_ids"]) as endpoint,
        running(endpoint.url, tmp_path) as gateway,
    ):
        ours = client(gateway.url_of("e"))
        for stream in (False, True, False):
            answer: Any = ours.chat.completions.create(**ASK, stream=stream)
            assert stream is False or "".join(c.choices[0].delta.content or "" for c in answer) == "42"
        assert [span.capability for span in trajectory(gateway, "e").spans] == ["trainable-retokenised"] * 3
    assert ["return_token_ids" in body for body, _ in endpoint.received] == [True, False, False, False]


def test_an_answer_that_is_none_refuses_no_field(tmp_path: Path) -> None:
    faults = [HTML_PAGE, HTML_PAGE, Fault(body="null"), Fault(body="null")]
    with ScriptedEndpoint("42", faults=faults) as endpoint, running(endpoint.url, tmp_path) as gateway:
        for _ in range(2):
            HTTP.post(f"{gateway.url_of('page')}/chat/completions", json=ASK)
        client(gateway.url_of("e")).chat.completions.create(**ASK)
        assert [span.capability for span in trajectory(gateway, "e").spans] == ["trainable-exact"]
        assert outcomes(gateway) == {"failed": 2, "answered": 1}


def test_keys_go_upstream_and_nowhere_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = {"Authorization": f"Bearer {KEY}", "x-api-key": KEY, "api-key": KEY}
    own = "sk-a-secret-of-the-gateway"
    hop = {"Connection": "keep-alive, X-Hop", "X-Hop": "1", "TE": "trailers", "X-App": "2"}

    def answer(request: Request) -> Iterator[bytes]:
        quoted = json.dumps(dict(request.headers))
        yield whole({"error": {"message": f"wrong key in {quoted}"}}, "401 Unauthorized", Upgrade="h2")

    with stub(answer) as upstream:
        for settings in ({}, {"api_key": own}, {"headers": {"api-key": own}}):
            with running(upstream.url, tmp_path, **settings) as gateway:
                url = f"{gateway.url_of('e')}/chat/completions"
                answered = HTTP.post(url, json=ASK, headers={**keys, **hop, "X-R3-Label": "retry"})
            assert answered.status_code == 401
            assert "upgrade" not in answered.headers
            assert (KEY in answered.text) is (not settings)
            assert own not in answered.text
    sent = [request.headers for request in upstream.requests]
    assert [headers.get("authorization") for headers in sent] == [f"Bearer {KEY}", f"Bearer {own}", None]
    assert [headers.get("api-key") for headers in sent] == [KEY, None, own]
    for headers in sent:
        assert headers["x-app"] == "2"
        assert not headers.keys() & {"x-hop", "te", "x-r3-label"}
    stored = "".join(path.read_text() for path in tmp_path.glob("*.jsonl"))
    assert "EndpointError" in stored
    assert "answered with status 401" in stored
    assert not any(secret in text for secret in (KEY, own) for text in (stored, caplog.text))


def test_key_that_is_not_ascii_is_refused_as_the_upstream_does(tmp_path: Path) -> None:
    key, faults = {"Authorization": "Bearer schlüssel".encode()}, [FAULTS["unauthorized"]]
    with ScriptedEndpoint("42", faults=faults) as endpoint, running(endpoint.url, tmp_path) as gateway:
        answered = HTTP.post(f"{gateway.url_of('e')}/chat/completions", json=ASK, headers=key)
    assert answered.status_code == 401
    assert "Incorrect API key" in answered.text
    [episode] = r3agent.load(tmp_path)
    assert episode.error is not None


@pytest.mark.parametrize("api", ["/chat/completions", "/messages"])
@pytest.mark.parametrize("own", [None, "sk-a-secret-of-the-gateway"])
def test_keys_in_an_error_with_status_200_are_in_no_record(api: str, own: str | None, tmp_path: Path) -> None:
    def answer(request: Request) -> Iterator[bytes]:
        yield whole({"error": {"message": f"wrong key: {request.headers['authorization']}", "code": 401}})

    with stub(answer) as upstream, running(upstream.url, tmp_path, api_key=own) as gateway:
        url = f"{gateway.url_of('e')}{api}"
        told = HTTP.post(url, json={**ASK, "max_tokens": 9}, headers={"Authorization": f"Bearer {KEY}"})
    assert "wrong key" in told.text
    assert own is None or own not in told.text
    [found] = r3agent.load(tmp_path)
    assert found.error is not None
    assert "wrong key" in found.error.message
    assert not any(secret in found.error.message for secret in (KEY, own) if secret)


def test_events_pass_in_time_with_all_that_is_in_them(tmp_path: Path) -> None:
    more = threading.Event()
    first = b": keep-alive\n\n" + event({"role": "assistant"}, x_unknown={"a": 1.5})

    def answer(request: Request) -> Iterator[bytes]:
        yield HEAD.encode() + first[:30]
        yield first[30:]
        assert more.wait(20)
        yield event({"content": "4"}, token_ids=[4], prompt_token_ids=[1, 2]).replace(b"\n", b"\r\n")
        yield b"event: ping\nid: 7\ndata: ping\n\n"
        yield event({"content": "2"}, finish_reason="stop", token_ids=[5])
        usage = {"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 2}}
        yield b"data: %s\n\ndata: [DONE]\n\n" % json.dumps(usage).encode()

    with stub(answer) as upstream, running(upstream.url, tmp_path) as gateway:
        url = f"{gateway.url_of('e')}/chat/completions"
        with HTTP.stream("POST", url, json={**ASK, "stream": True}, timeout=20) as response:
            lines = response.iter_lines()
            assert next(lines) == ": keep-alive"
            more.set()
            rest = [line for line in lines if line]
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["x-r3-episode"] == "e"
    assert rest[2:5] == ["event: ping", "id: 7", "data: ping"]
    assert rest[-1] == "data: [DONE]"
    assert not any("token_ids" in line or "usage" in line for line in rest)
    [found] = r3agent.load(tmp_path)
    assert [(span.text, span.token_ids, span.prompt_tokens) for span in found.spans] == [("42", (4, 5), 2)]


def test_errors_of_the_upstream_reach_the_client(tmp_path: Path) -> None:
    faults = [None, rate_limited(7), SERVER_ERROR, SERVER_ERROR, HTML_PAGE, DROPPED]  # a 500 may be the fields'
    with ScriptedEndpoint("42", faults=faults) as endpoint, running(endpoint.url, tmp_path) as gateway:
        url = f"{gateway.url_of('e')}/chat/completions"
        answers = [HTTP.post(url, json=body) for body in (ASK, ASK, ASK, ASK, ASK, {**ASK, "model": "none"})]
        assert [answer.status_code for answer in answers] == [200, 429, 500, 200, 502, 404]
        assert float(answers[1].headers["retry-after"]) == 7
        assert answers[3].text == HTML_PAGE.body
        assert "broke off" in answers[4].json()["error"]["message"]
        for body in (b"no JSON", b"[1]", b'{"model": "scripted"}'):
            refused = HTTP.post(url, content=body, headers={"Content-Type": "application/json"})
            assert refused.status_code >= 400
        assert [span.text for span in trajectory(gateway, "e").spans] == ["42"]


def test_an_upstream_that_is_down_or_slow_is_told_as_one(tmp_path: Path) -> None:
    with running("http://127.0.0.1:9/v1", tmp_path) as gateway:
        down = HTTP.post(f"{gateway.url_of('e')}/chat/completions", json=ASK)
        assert HTTP.get(f"{gateway.url}/models").status_code == 502
    with ScriptedEndpoint("42", faults=[HANG]) as endpoint, running(endpoint.url, tmp_path, timeout_s=0.2) as gateway:
        slow = HTTP.post(f"{gateway.url_of('f')}/chat/completions", json=ASK)
        endpoint.wait_for_hanging(0)
    assert (down.status_code, slow.status_code) == (502, 504)
    assert "cannot be reached" in down.json()["error"]["message"]
    assert "no answer within 0.2 s" in slow.json()["error"]["message"]
    assert [(len(t.spans), t.error is not None) for t in r3agent.load(tmp_path)] == [(0, True)] * 2


def test_a_stream_that_breaks_off_breaks_off_for_the_client(tmp_path: Path) -> None:
    def answer(request: Request) -> Iterator[bytes]:
        yield HEAD.replace("Connection: close", "Transfer-Encoding: chunked").encode()
        piece = event({"content": "half"}, token_ids=[4], prompt_token_ids=[1])
        yield b"%x\r\n%s\r\n" % (len(piece), piece)

    with stub(answer) as upstream, running(upstream.url, tmp_path) as gateway:
        stream = client(gateway.url_of("e")).chat.completions.create(**ASK, stream=True)
        with pytest.raises((httpx.RemoteProtocolError, openai.APIConnectionError)):
            list(stream)
    [found] = r3agent.load(tmp_path)
    assert [(span.text, span.capability) for span in found.spans] == [("half", "eval-only")]


def test_a_client_that_leaves_cancels_the_request(tmp_path: Path) -> None:
    def answer(request: Request) -> Iterator[bytes]:
        yield HEAD.encode()
        while True:
            yield event({"content": "more "})

    with ScriptedEndpoint("42", faults=[HANG]) as endpoint, running(endpoint.url, tmp_path) as gateway:
        with pytest.raises(openai.APITimeoutError):
            client(gateway.url_of("e"), timeout=0.5).chat.completions.create(**ASK)
        endpoint.wait_for_hanging(0)
    with stub(answer) as upstream, running(upstream.url, tmp_path) as gateway:
        stream = client(gateway.url_of("f")).chat.completions.create(**ASK, stream=True)
        next(iter(stream))
        stream.close()
        assert upstream.gone.wait(20)
        trajectory(gateway, "f")
        assert outcomes(gateway) == {"failed": 1}
    episodes = {t.metadata["episode"]: t for t in r3agent.load(tmp_path)}
    assert episodes["e"].error is not None
    assert [span.capability for span in episodes["f"].spans] == ["eval-only"]


def test_other_routes_pass_through(tmp_path: Path) -> None:
    def answer(request: Request) -> Iterator[bytes]:
        yield whole({"path": request.path, "body": request.body}, "201 Created", **{"X-Request-Id": "7"})

    with stub(answer) as upstream, running(upstream.url, tmp_path) as gateway:
        for base in (gateway.url, gateway.url_of("v1")):
            found = HTTP.get(f"{base}/models/a%2Fb?limit=1")
            assert (found.status_code, found.headers["x-request-id"]) == (201, "7")
            assert found.json()["path"] == "/v1/models/a%2Fb?limit=1"
            posted = HTTP.post(f"{base}/embeddings", json={"input": "x"})
            assert posted.json() == {"path": "/v1/embeddings", "body": {"input": "x"}}
    assert r3agent.load(tmp_path) == []


@pytest.mark.parametrize("route", ["models", "chat/completions"])
def test_a_query_reaches_the_upstream_as_it_was_encoded(route: str, tmp_path: Path) -> None:
    query = "a=%20HTTP/1.1%0D%0AX-Other:%201&b=%26%23&c=%C3%BC&d=1%2B1"
    with stub(lambda request: iter([whole({"choices": []})])) as upstream, running(upstream.url, tmp_path) as gateway:
        HTTP.post(f"{gateway.url}/{route}?{query}", json={"messages": [USER]})
    assert upstream.requests[0].path == f"/v1/{route}?{query}"
    assert "x-other" not in upstream.requests[0].headers
