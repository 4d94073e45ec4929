"""Calls are grouped into tries and episodes by URL or header; each episode is stored once."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import r3agent
from r3agent.errors import ConfigError
from r3agent.gateway.server import Gateway
from r3agent.records.trajectory import Trajectory
from r3agent.testing import ScriptedEndpoint
from tests.gateway.stub import HEAD, HTTP, Request, event, stub
from tests.support.exported import Exported, has
from tests.support.exported import exported as exported

USER = {"role": "user", "content": "?"}
ANSWER = {"role": "assistant", "content": "42"}


class Client:
    """Calls and verdicts of one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.root = gateway.url.removesuffix("/v1")

    def ask(self, episode: str, name: str, *further: Any, **fields: Any) -> httpx.Response:
        url = f"{self._gateway.url_of(episode, name)}/chat/completions"
        return HTTP.post(url, json={"model": "scripted", "messages": [USER, *further], **fields})

    def verdict(self, episode: str, **body: Any) -> httpx.Response:
        return HTTP.post(f"{self.root}/episodes/{episode}/verdict", json=body)

    def get(self, episode: str) -> httpx.Response:
        return HTTP.get(f"{self.root}/episodes/{episode}")


def labels(trajectory: Trajectory) -> list[tuple[str, list[str], bool | None]]:
    return [(a_try.label, [span.text for span in a_try.steps], a_try.passed) for a_try in trajectory.tries]


def test_an_episode_has_the_tries_that_its_urls_name(tmp_path: Path, exported: Exported) -> None:
    reflect, again = {"role": "user", "content": "why?"}, {"role": "user", "content": "again"}
    with ScriptedEndpoint("42") as endpoint, Gateway(endpoint.url, out=tmp_path) as gateway:
        client = Client(gateway)
        for _ in range(2):
            client.ask("e", "attempt")
        assert client.verdict("e", passed=False, feedback="not 7").json()["state"] == "open"
        for number in (1, 2):
            client.ask("e", f"reflect-{number}", ANSWER, reflect)
            client.ask("e", f"retry-{number}", ANSWER, reflect, ANSWER, again)
        client.ask("e", "retry-blind", ANSWER, again)
        client.verdict("e", label="retry-1", score=0.25)
        client.verdict("e", label="retry-blind", passed=False)
        assert Trajectory.model_validate(client.get("e").json()).metadata == {"episode": "e"}
        stored = client.verdict("e", label="retry-2", score=1).json()
        assert stored["state"] == "stored"
    [found] = r3agent.load(tmp_path)
    assert found.trajectory_id == stored["trajectory_id"]
    assert [(name, len(texts), passed) for name, texts, passed in labels(found)] == [
        ("attempt", 2, False),
        ("retry", 1, False),
        ("retry", 1, True),
        ("retry", 1, False),
    ]
    episode = exported.one("invoke_agent")
    children = exported.children(episode)
    assert {has(one)["r3agent.trajectory.id"] for one in [episode, *children]} == {found.trajectory_id}
    calls = {"attempt": 2, "reflect": 2, "retry": 3}
    assert Counter(has(one)["r3agent.label"] for one in children if one.name.startswith("chat")) == calls
    assert [one.name for one in children].count("evaluate application") == 4
    attempt, *retries = found.tries
    assert [retry.is_blind for retry in retries] == [False, False, True]
    assert [found.parent(s) for s in found.spans if s.label == "reflect"] == [attempt.last] * 2
    assert len({retry.first.parent_id for retry in retries}) == 3
    assert attempt.verdict is not None
    assert attempt.verdict.feedback == "not 7"


def test_calls_of_plain_urls_are_told_where_they_are_recorded(tmp_path: Path) -> None:
    body = {"model": "scripted", "messages": [USER]}
    with ScriptedEndpoint("42") as endpoint, Gateway(endpoint.url, out=tmp_path) as gateway:
        url, client = f"{gateway.url}/chat/completions", Client(gateway)
        alone = [HTTP.post(url, json=body).headers["x-r3-episode"] for _ in range(2)]
        named = HTTP.post(url, json=body, headers={"X-R3-Episode": "e", "X-R3-Label": "retry-2"})
        assert (named.headers["x-r3-episode"], named.headers["x-r3-label"]) == ("e", "retry-2")
        assert client.verdict(alone[0], passed=True).json()["state"] == "stored"
    found = {t.metadata["episode"]: labels(t) for t in r3agent.load(tmp_path)}
    assert found == {
        alone[0]: [("attempt", ["42"], True)],
        alone[1]: [("attempt", ["42"], None)],
        "e": [("retry", ["42"], None)],
    }


def test_a_try_or_episode_with_its_verdict_takes_no_call(tmp_path: Path) -> None:
    with ScriptedEndpoint("42") as endpoint, Gateway(endpoint.url, out=tmp_path) as gateway:
        client = Client(gateway)
        client.ask("e", "attempt")
        client.verdict("e", passed=False)
        refused = client.ask("e", "attempt")
        assert (refused.status_code, "/episodes/e/attempt-2/v1" in refused.text) == (410, True)
        assert client.ask("e", "attempt-2").status_code == 200
        assert client.verdict("e", passed=False, end=True).json()["state"] == "stored"
        assert client.ask("e", "attempt-3").status_code == 410
        assert client.verdict("e", score=0.5).status_code == 409  # labels have none
        assert client.verdict("e", passed=True).json()["state"] == "labelled"
        assert client.get("e").json()["trajectory_id"]
    [found] = r3agent.load(tmp_path)
    assert labels(found) == [("attempt", ["42"], False), ("attempt", ["42"], True)]


@pytest.mark.parametrize("end", [False, True])
def test_a_verdict_ends_the_calls_of_its_try(end: bool, tmp_path: Path) -> None:
    judged = threading.Event()

    def answer(request: Request) -> Iterator[bytes]:
        yield HEAD.encode() + event({"content": "a"})
        if request.body["messages"][1:]:
            judged.wait(20)
        yield event({"content": "b"}, finish_reason="stop")

    with stub(answer) as upstream, Gateway(upstream.url, out=tmp_path) as gateway:
        client = Client(gateway)
        client.ask("e", "attempt", stream=True)
        body = {"model": "m", "messages": [USER, USER], "stream": True}
        with HTTP.stream("POST", f"{gateway.url_of('e')}/chat/completions", json=body) as response:
            lines = response.iter_lines()
            assert '"a"' in next(lines)
            assert client.verdict("e", passed=False, end=end).status_code == 200
            judged.set()
            assert '"b"' in "".join(lines)
        found = Trajectory.model_validate(client.get("e").json())
    assert labels(found) == [("attempt", ["ab", "a"], False)]
    assert [span.capability for span in found.spans][1] == "eval-only"


async def test_an_idle_episode_is_stored_and_can_be_begun_again(tmp_path: Path) -> None:
    with ScriptedEndpoint("42") as endpoint, Gateway(endpoint.url, out=tmp_path, idle_s=0.2) as gateway:
        client = Client(gateway)
        for n in (1, 2):
            await asyncio.to_thread(client.ask, "e", "attempt")
            while len(r3agent.load(tmp_path)) < n:
                await asyncio.sleep(0.05)
        assert (await asyncio.to_thread(client.verdict, "e", passed=True)).json()["state"] == "labelled"
    assert [labels(t) for t in r3agent.load(tmp_path)] == [[("attempt", ["42"], None)], [("attempt", ["42"], True)]]


@pytest.mark.parametrize(
    ("body", "status", "why"),
    [
        ({}, 400, "passed or score"),
        ([True], 400, "passed or score"),
        ({"passed": "yes"}, 400, "must be true or false"),
        ({"score": 2}, 400, "from 0 to 1"),
        ({"score": True}, 400, "from 0 to 1"),
        ({"passed": True, "lable": "retry"}, 400, "unknown field 'lable'"),
        ({"passed": True, "label": "retry"}, 409, "has attempt"),
        ({"passed": True, "label": 3}, 400, "name of a try"),
    ],
)
def test_a_verdict_that_cannot_be_says_why(body: Any, status: int, why: str, tmp_path: Path) -> None:
    with ScriptedEndpoint("42") as endpoint, Gateway(endpoint.url, out=tmp_path) as gateway:
        client = Client(gateway)
        client.ask("e", "attempt")
        refused = HTTP.post(f"{client.root}/episodes/e/verdict", json=body)
    assert (refused.status_code, why in refused.json()["error"]["message"]) == (status, True)


def test_addresses_that_are_none_are_refused(tmp_path: Path) -> None:
    with ScriptedEndpoint("42") as endpoint, Gateway(endpoint.url, out=tmp_path, body_limit_mb=0.001) as gateway:
        client = Client(gateway)
        assert client.ask("e", "reply").status_code == 404
        assert client.ask("-e", "attempt").status_code == 400
        assert client.ask("e", "attempt", {"role": "user", "content": "x" * 2000}).status_code == 413
        assert client.get("unknown").status_code == 404
        assert client.verdict("unknown", passed=True).status_code == 404
        assert HTTP.get(f"{client.root}/nothing").status_code == 404
        assert HTTP.get(f"{client.root}/health").json()["status"] == "ok"
        assert "r3agent_gateway_calls_total" in HTTP.get(f"{client.root}/metrics").text
    assert r3agent.load(tmp_path) == []


def test_a_token_is_demanded_and_not_passed_on(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give a token"):
        Gateway("http://127.0.0.1:8000/v1", out=tmp_path, host="0.0.0.0")
    body = {"model": "scripted", "messages": [USER]}
    with ScriptedEndpoint("42") as endpoint, Gateway(endpoint.url, out=tmp_path, token="a-token") as gateway:
        url = f"{gateway.url}/chat/completions"
        ways = [{}, {"Authorization": "Bearer b"}, {"Authorization": "Bearer a-token"}]
        ways += [{"X-R3-Token": "a-token", "Authorization": "Bearer of-upstream"}]
        statuses = [HTTP.post(url, json=body, headers=headers).status_code for headers in ways]
        assert HTTP.get(f"{gateway.url.removesuffix('/v1')}/health").status_code == 200
    assert statuses == [401, 401, 200, 200]
    assert [authorization for _, authorization in endpoint.received] == [None, "Bearer of-upstream"]
