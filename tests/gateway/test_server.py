"""A gateway in process: the calls of a program become steps of a try of this process."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import r3agent
from r3agent.errors import EndpointError
from r3agent.gateway.server import Gateway
from r3agent.recording.blocks import SpanScope
from r3agent.recording.terms import CallTerms
from r3agent.testing import HANG, SERVER_ERROR, ScriptedEndpoint

USER: Any = {"role": "user", "content": "?"}


def ask(url: str, model: str = "policy", **settings: Any) -> httpx.Response:
    body = {"model": model, "messages": [USER]}
    return httpx.post(f"{url}/chat/completions", json=body, headers={"Authorization": "Bearer none"}, **settings)


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
            gateway.close(url)
            assert ask(url).status_code == 410
            assert ask(gateway.url).status_code == 410
    assert [(span.text, span.purpose, span.policy_version) for span in episode.spans] == [
        ("42", None, "v0003"),
        ("7", "another model", "v0000"),
        ("42", None, "v0003"),
    ]
    assert [span.capability for span in episode.spans] == ["trainable-exact", "eval-only", "trainable-exact"]
    assert len(episode.trajectory.tries) == 1
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_command_stores_open_episodes_at_the_end(number: int, tmp_path: Path) -> None:
    with ScriptedEndpoint("42") as endpoint:
        words = ["gateway", "--upstream", endpoint.url, "--out", str(tmp_path), "--port", "0", "--json"]
        words += ["--model", "scripted"]
        process = subprocess.Popen(
            [sys.executable, "-m", "r3agent", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        url = process.stderr.readline().split(",")[0].removeprefix("gateway on ")
        with openai.OpenAI(base_url=url.replace("/v1", "/episodes/e/attempt/v1"), api_key="x") as client:
            client.chat.completions.create(model="policy", messages=[USER])
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert '"recorded":1' in out
    [found] = r3agent.load(tmp_path)
    assert [(span.text, span.model) for span in found.spans] == [("42", "scripted")]
