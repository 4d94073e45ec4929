"""A gateway in process: the calls of a program become steps of a try of this process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import r3agent
from r3agent.errors import ConfigError, EndpointError
from r3agent.gateway.journal import left_behind
from r3agent.gateway.server import Gateway
from r3agent.recording.blocks import SpanScope
from r3agent.recording.terms import CallTerms
from r3agent.store.trajectories import load
from r3agent.testing import HANG, SERVER_ERROR, ScriptedEndpoint
from tests.gateway.stub import HTTP
from tests.support.access import Proxy
from tests.support.registries import add, tiny_registry

USER: Any = {"role": "user", "content": "?"}


def ask(url: str, model: str = "policy", content: str = "?", **settings: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": content}]}
    return HTTP.post(f"{url}/chat/completions", json=body, headers={"Authorization": "Bearer none"}, **settings)


def test_calls_are_steps_of_the_try_that_is_open() -> None:
    with ScriptedEndpoint("42", model="m@v0003", api_key="k") as policy, ScriptedEndpoint("7", model="other") as rest:
        terms = CallTerms(
            names=frozenset({"policy", "m"}),
            model="m@v0003",
            base_url=policy.url,
            headers={"Authorization": "Bearer k"},
            sampling={"top_k": -1},
            max_steps=3,
        )
        with Gateway(rest.url) as gateway, r3agent.trace() as episode:
            scope = SpanScope("attempt", None, one_try=True, terms=terms)
            url = gateway.open(episode, scope)
            assert ask(url, "m").json()["choices"][0]["message"]["content"] == "42"
            assert ask(url, "other").json()["choices"][0]["message"]["content"] == "7"
            assert ask(url).status_code == 200
            refused = ask(url)
            assert (refused.status_code, "max_steps = 3" in refused.text) == (400, True)
            assert ask(url.replace("attempt", "retry")).status_code == 410
            own = HTTP.post(url.replace("/attempt/v1", "/verdict"), json={"passed": True})
            assert (own.status_code, "judged by the verifier" in own.text) == (409, True)  # no program judges itself
            gateway.close(url)
            assert ask(url).status_code == 410
            assert ask(gateway.url).status_code == 410
    assert [(span.text, span.purpose, span.policy_version) for span in episode.spans] == [
        ("42", None, "v0003"),
        ("7", "another model", None),
        ("42", None, "v0003"),
    ]
    assert [span.capability for span in episode.spans] == ["trainable-exact", "eval-only", "trainable-exact"]
    assert [a_try.verdict for a_try in episode.trajectory.tries] == [None]
    assert policy.received[0].body["top_k"] == -1
    assert "top_k" not in rest.received[0].body


def test_a_try_that_is_closed_ends_its_calls_and_knows_why_they_failed() -> None:
    with ScriptedEndpoint("42", model="m", faults=[SERVER_ERROR, SERVER_ERROR, HANG]) as endpoint:
        terms = CallTerms(names=frozenset({"policy"}), model="m", base_url=endpoint.url)
        with Gateway(endpoint.url) as gateway, r3agent.trace() as episode:
            url = gateway.open(episode, SpanScope("attempt", None, one_try=True, terms=terms))
            assert ask(url).status_code == 500
            assert isinstance(terms.failure, EndpointError)
            with pytest.raises(httpx.ReadTimeout):
                ask(url, timeout=0.3)
            gateway.close(url)
            endpoint.wait_for_hanging(0)
    assert episode.spans == ()


@contextmanager
def command(*words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `r3agent gateway` on a free port; yield its process and base URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "r3agent", "gateway", "--port", "0", "--json", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        yield process, process.stderr.readline().split(",")[0].removeprefix("gateway on ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_command_stores_open_episodes_at_the_end(number: int, tmp_path: Path) -> None:
    with ScriptedEndpoint("42") as endpoint:
        words = ["--upstream", endpoint.url, "--out", str(tmp_path), "--model", "scripted"]
        with command(*words) as (process, url):
            assert ask(url.replace("/v1", "/episodes/e/attempt/v1")).status_code == 200
            process.send_signal(number)
            out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert '"recorded":1' in out
    [found] = r3agent.load(tmp_path)
    assert [(span.text, span.model) for span in found.spans] == [("42", "scripted")]
    assert [path.suffix for path in tmp_path.iterdir()] == [".jsonl"]


def test_a_gateway_stores_what_a_killed_one_had_answered(tmp_path: Path) -> None:
    with ScriptedEndpoint("42") as endpoint:
        endpoint.adapters = ["titles"]
        words = ["--upstream", endpoint.url, "--out", str(tmp_path), "--model", "scripted"]
        with command(*words) as (process, url):
            root = url.removesuffix("/v1")
            ask(f"{root}/episodes/open/attempt/v1", "titles", content="A title?")
            for episode in ("open", "failed", "stored"):
                for _ in range(2):
                    ask(f"{root}/episodes/{episode}/attempt/v1", "scripted")
            HTTP.post(f"{root}/episodes/failed/verdict", json={"passed": False})
            HTTP.post(f"{root}/episodes/stored/verdict", json={"passed": True})
            HTTP.get(f"{root}/episodes/stored")  # waits for the disk
            process.kill()
            process.communicate(timeout=60)
        assert len(r3agent.load(tmp_path)) == 1
        with Gateway(endpoint.url, out=tmp_path) as gateway:
            assert ask(gateway.url, "scripted").status_code == 200
            assert len(r3agent.load(tmp_path)) == 3
            judged = HTTP.post(f"{gateway.url.removesuffix('/v1')}/episodes/open/verdict", json={"passed": True})
            assert judged.json()["state"] == "labelled"
    found = {t.metadata["episode"]: t for t in r3agent.load(tmp_path)}
    assert {name: (len(t.spans), t.passed) for name, t in found.items() if name in ("open", "failed", "stored")} == {
        "open": (3, True),
        "failed": (2, False),
        "stored": (2, True),
    }
    assert found["open"].task.messages == (USER,)  # not that of the other model
    assert [span.purpose for span in found["open"].spans] == ["another model", None, None]
    assert len(found) == 4
    assert {path.suffix for path in tmp_path.iterdir() if path.is_file()} == {".jsonl"}


def test_calls_of_a_runs_policy_go_to_its_live_version(tmp_path: Path) -> None:
    tiny_registry(tmp_path)
    with ScriptedEndpoint("42", model="tiny") as endpoint, Gateway(endpoint.url, out=tmp_path, run=tmp_path) as gateway:
        url = gateway.url_of("e")
        assert [ask(url, name).status_code for name in ("tiny", "tiny@live", "policy", "other")] == [200] * 3 + [404]
    assert [body["model"] for body, _ in endpoint.received] == ["tiny"] * 3 + ["other"]
    with pytest.raises(ConfigError, match="nothing is live"):
        Gateway(endpoint.url, out=tmp_path, run=tmp_path / "none")


@pytest.mark.parametrize(
    ("kind", "goes_live", "stamps"),
    [("full", True, ["v0000", None]), ("full", False, ["v0000", None]), ("lora", True, ["v0000", "v0000"])],
)
def test_an_episode_whose_weights_were_swapped_is_of_no_known_version(
    tmp_path: Path, kind: str, goes_live: bool, stamps: list[str | None]
) -> None:
    """Other weights go live, or replace the live ones for an evaluation."""
    registry = tiny_registry(tmp_path)
    out = tmp_path / "episodes"
    with ScriptedEndpoint("42", model="tiny") as endpoint, Gateway(endpoint.url, out=out, run=tmp_path) as gateway:
        ask(gateway.url_of("e"))
        HTTP.get(f"{gateway.url.removesuffix('/v1')}/episodes/e")  # waits for the record of the first call
        add(registry, "v0001", kind)
        if goes_live:
            registry.set_live("v0001")
        else:
            registry.swapped_path.touch()
        ask(gateway.url_of("e"))
    [episode] = load(out)
    assert [span.policy_version for span in episode.spans] == stamps


def test_journal_goes_on_after_a_write_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written, sizes = os.write, iter([3, None, 3])
    with ScriptedEndpoint("42") as endpoint, Gateway(endpoint.url, out=tmp_path) as gateway:

        def write(fd: int, content: bytes) -> int:
            return written(fd, content[: next(sizes, None)] if b"trajectory_id" in content else content)

        monkeypatch.setattr("r3agent.gateway.journal.os.write", write)
        for _ in range(4):
            ask(gateway.url_of("e"), "scripted")
        assert HTTP.get(f"{gateway.url.removesuffix('/v1')}/episodes/e").status_code == 200  # the last call has ended
        [path] = tmp_path.glob("*.journal")
        (tmp_path / "killed").mkdir()
        shutil.copy(path, tmp_path / "killed")
        [(_, [found])] = left_behind(tmp_path / "killed")
    assert len(found.spans) == 4


def test_calls_go_through_the_proxy(tmp_path: Path) -> None:
    proxy = Proxy()
    try:
        with ScriptedEndpoint("42") as endpoint, Gateway(endpoint.url, out=tmp_path, proxy=proxy.url) as gateway:
            assert ask(gateway.url, "scripted").json()["choices"][0]["message"]["content"] == "42"
            assert HTTP.get(f"{gateway.url}/models").status_code == 200
        assert proxy.asked == ["/v1/chat/completions", "/v1/models"]
    finally:
        proxy.close()


def test_proxy_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"proxy = 'socks5://p:1': a gateway takes HTTP proxies"):
        Gateway("http://127.0.0.1:8000/v1", proxy="socks5://p:1")
