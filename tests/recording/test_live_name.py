"""`NAME@live` in the requests of an application's own client: a deploy reaches it, one episode keeps one version."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from langchain_openai import ChatOpenAI

import r3agent
from r3agent import ConfigError, Trajectory
from r3agent.recording.episode import Episode
from r3agent.recording.terms import CallTerms
from r3agent.store.registry import Registry
from r3agent.testing import ScriptedEndpoint
from tests.support.registries import add, go_live, tiny_registry

Ask = Callable[[], str]
ASK: Any = [{"role": "user", "content": "2 + 2?"}]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return tiny_registry(tmp_path)


@pytest.fixture
def endpoint() -> Iterator[ScriptedEndpoint]:
    with ScriptedEndpoint("4", model="tiny") as server:
        server.adapters += ["tiny@v0001", "tiny@v0002"]
        yield server


@pytest.fixture(params=["openai", "langchain"])
def ask(request: pytest.FixtureRequest, registry: Registry, endpoint: ScriptedEndpoint) -> Iterator[Ask]:
    with openai.OpenAI(base_url=endpoint.url, api_key="x", max_retries=0) as plain:
        if request.param == "openai":
            client = r3agent.instrument(plain, registry=registry)
            yield (
                lambda: client.chat.completions.create(model="tiny@live", messages=ASK).choices[0].message.content or ""
            )
        else:
            chat = ChatOpenAI(client=plain.chat.completions, api_key="x", model="tiny@live")  # pyright: ignore
            model = r3agent.instrument(chat, registry=registry)
            yield lambda: str(model.invoke("2 + 2?").content)


def test_a_deploy_reaches_the_next_episode(ask: Ask, registry: Registry, endpoint: ScriptedEndpoint) -> None:
    with r3agent.trace() as first:
        ask()
        go_live(registry, "v0001")
        ask()
    with r3agent.trace() as second:
        ask()
    go_live(registry, "v0002")
    assert ask() == "4"
    assert [r.body["model"] for r in endpoint.received] == ["tiny", "tiny", "tiny@v0001", "tiny@v0002"]
    assert [s.policy_version for s in (*first.spans, *second.spans)] == ["v0000", "v0000", "v0001"]
    assert {s.capability for s in first.spans} == {"trainable-exact"}


def test_an_episode_goes_on_when_its_version_is_unloaded(
    ask: Ask, registry: Registry, endpoint: ScriptedEndpoint
) -> None:
    go_live(registry, "v0001")
    with r3agent.trace() as episode:
        ask()
        endpoint.adapters.remove("tiny@v0001")
        with pytest.raises(openai.NotFoundError):
            ask()
        go_live(registry, "v0002")
        ask()
        ask()
    assert [s.policy_version for s in episode.spans] == ["v0001", "v0002", "v0002"]


def test_the_server_of_the_live_version_is_asked(ask: Ask, registry: Registry) -> None:
    with ScriptedEndpoint("5", model="tiny") as green, r3agent.trace() as episode:
        registry.set_live("v0000", base_url=green.url)
        assert ask() == "5"
        with r3agent.unrecorded():
            assert ask() == "5"
    assert len(episode.spans) == 1


def test_weights_that_are_reloaded_in_place_are_known_by_the_pointer(
    registry: Registry, endpoint: ScriptedEndpoint
) -> None:
    add(registry, "v0001", "full")
    with openai.OpenAI(base_url=endpoint.url, api_key="x") as plain, r3agent.trace() as episode:
        client = r3agent.instrument(plain, registry=registry)
        for version in ("v0000", "v0001"):
            registry.set_live(version)
            client.chat.completions.create(model="tiny@live", messages=ASK)
        with episode.aside("router"):
            client.chat.completions.create(model="tiny@live", messages=ASK)
        stream: Any = client.chat.completions.create(model="tiny@live", messages=ASK, stream=True)
        registry.set_live("v0000")
        assert list(stream)
        registry.swapped_path.touch()  # by an evaluation
        client.chat.completions.create(model="tiny@live", messages=ASK)
        registry.swapped_path.unlink()
        client.chat.completions.create(model="tiny@live", messages=ASK)
    assert [s.policy_version for s in episode.spans] == ["v0000", "v0001", "v0001", None, None, "v0000"]


def test_a_call_during_the_first_deploy_in_place_is_of_no_known_version(registry: Registry) -> None:
    def merges(body: Any, choice: int) -> str:
        if not registry.merges_adapters:
            registry.set_live("v0000", merges_adapters=True)
            registry.swapped_path.touch()
        return "4"

    with ScriptedEndpoint(merges, model="tiny") as endpoint, r3agent.trace() as episode:
        client = r3agent.instrument(openai.OpenAI(base_url=endpoint.url, api_key="x"), registry=registry)
        client.chat.completions.create(model="tiny@live", messages=ASK)
        registry.swapped_path.unlink()
        client.chat.completions.create(model="tiny@live", messages=ASK)
        client.close()
    assert [s.policy_version for s in episode.spans] == [None, "v0000"]


def test_a_try_with_terms_keeps_the_version_of_the_terms(registry: Registry, endpoint: ScriptedEndpoint) -> None:
    episode = Episode.seeded(Trajectory(task=r3agent.Task(messages=tuple(ASK))))
    terms = CallTerms(names=frozenset({"tiny", "tiny@live"}), model="tiny@v0002")
    with openai.OpenAI(base_url=endpoint.url, api_key="x") as plain, episode.one_try("attempt", terms=terms):
        r3agent.instrument(plain, registry=registry).chat.completions.create(model="tiny@live", messages=ASK)
    assert [s.policy_version for s in episode.spans] == ["v0002"]


def test_a_live_name_that_cannot_be_resolved_is_refused(
    registry: Registry, endpoint: ScriptedEndpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with openai.OpenAI(base_url=endpoint.url, api_key="x") as plain:
        client = r3agent.instrument(plain, registry=registry)
        with pytest.raises(ConfigError, match="ask for that"):
            client.chat.completions.create(model="other@live", messages=ASK)
        with pytest.raises(ConfigError, match="nothing is live"):
            r3agent.instrument(plain, registry=tmp_path / "none")
        with pytest.raises(openai.NotFoundError):
            r3agent.instrument(plain).chat.completions.create(model="tiny@live", messages=ASK)
    assert "registry=RUN" in caplog.text
