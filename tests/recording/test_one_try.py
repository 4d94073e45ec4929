"""`Episode.one_try`: whatever calls an agent makes are the steps of one try, under the terms of the policy."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any, TypeAlias

import openai
import pytest

import r3agent
from r3agent import ConfigError, Task, Trajectory, Verdict
from r3agent.errors import AccessError, ContextLengthError, EndpointError, StepLimitError, UnreachableError
from r3agent.recording.episode import Episode
from r3agent.recording.instrument import bind
from r3agent.recording.terms import CallTerms
from r3agent.testing import PROMPT_TOO_LONG, SERVER_ERROR, ScriptedEndpoint
from tests.support.gateway import gateway

Clients: TypeAlias = Callable[[str], openai.OpenAI]

ASK: list[Any] = [{"role": "user", "content": "2 + 2?"}]
OTHER: list[Any] = [{"role": "user", "content": "Which tool?"}]
LOOK: Any = {
    "content": "",
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
}


@pytest.fixture
def endpoint() -> Iterator[ScriptedEndpoint]:
    with ScriptedEndpoint(lambda body, i: f"{body['messages'][-1]['content']}!") as server:
        server.adapters = ["scripted@v0003", "elsewhere"]
        yield server


@pytest.fixture
def a_client() -> Iterator[Clients]:
    with ExitStack() as opened:

        def make(url: str) -> openai.OpenAI:
            plain = openai.OpenAI(base_url=url, api_key="sk-application", max_retries=0)
            return r3agent.instrument(opened.enter_context(plain))

        yield make


def say(client: openai.OpenAI, messages: list[Any] = ASK, model: str = "scripted", **fields: Any) -> Any:
    return client.chat.completions.create(model=model, messages=messages, **fields).choices[0].message


def a_tree() -> Trajectory:
    return Trajectory(task=Task(messages=tuple(ASK)))


def terms(**fields: Any) -> CallTerms:
    return CallTerms(names=frozenset({"policy", "scripted"}), model="scripted@v0003", **fields)


def test_one_try_has_all_calls_as_steps(endpoint: ScriptedEndpoint, a_client: Clients) -> None:
    client, episode = a_client(endpoint.url), Episode.seeded(a_tree())
    with episode.one_try("attempt") as scope:
        first = say(client)
        talk = [*ASK, first, {"role": "user", "content": "more"}]
        say(client, OTHER)
        say(client, talk)
        say(client, talk, n=2)
    tree = episode.trajectory
    [one] = tree.tries
    assert one.steps == tree.spans == episode.spans_of(scope)
    a, other, b, c, d = tree.spans
    assert [s.parent_id for s in tree.spans] == [None, a.span_id, a.span_id, a.span_id, c.span_id]
    assert [s.standalone for s in tree.spans] == [False, True, False, False, True]
    assert [tree.prompt(s) for s in tree.spans] == [r.body["messages"] for r in endpoint.received[:3]] + [
        endpoint.received[3].body["messages"]
    ] * 2
    assert {s.capability for s in (a, other, b, c, d)} == {"trainable-exact"}


def test_one_try_of_a_retry_begins_under_its_parent(endpoint: ScriptedEndpoint, a_client: Clients) -> None:
    client, episode = a_client(endpoint.url), Episode.seeded(a_tree())
    with episode.one_try("attempt"):
        say(client)
        say(client, OTHER)
    failed = episode.trajectory
    last = failed.spans[-1].model_copy(update={"verdict": Verdict.failed("no")})
    again = Episode.seeded(failed.changed(spans=(*failed.spans[:-1], last)))
    with again.one_try("retry", parent=last) as scope:
        say(client)
        say(client, OTHER)
    tree = again.trajectory
    assert tree.trajectory_id == failed.trajectory_id
    assert [s.parent_id for s in again.spans_of(scope)] == [last.span_id, tree.spans[2].span_id]
    assert [(t.label, len(t.steps), t.is_blind) for t in tree.tries] == [("attempt", 2, False), ("retry", 2, True)]
    with pytest.raises(ConfigError, match="attempt or retry"), again.one_try("reflect"):
        pass


async def test_one_try_has_the_calls_of_threads_and_tasks(a_client: Clients) -> None:
    with ScriptedEndpoint("hi", model="scripted@v0003") as endpoint:
        client, plain = a_client(endpoint.url), openai.AsyncOpenAI(base_url=endpoint.url, api_key="x")
        async with r3agent.instrument(plain) as asynchronous:

            async def agent(episode: Episode, n: int) -> int:
                with episode.one_try("attempt", terms=terms()) as scope:
                    asks: Any = [{"role": "user", "content": f"{n}"}]
                    calls = [asynchronous.chat.completions.create(model="policy", messages=asks) for _ in range(3)]
                    await asyncio.gather(*calls, asyncio.to_thread(say, client, asks, "policy"))
                    bound = bind(client, episode, scope)
                    thread = threading.Thread(target=say, args=(bound, asks, "policy"))
                    thread.start()
                    await asyncio.to_thread(thread.join)
                return len(scope.span_ids)

            episodes = [
                Episode.seeded(Trajectory(task=Task(messages=({"role": "user", "content": f"{n}"},)))) for n in range(4)
            ]
            counts = await asyncio.gather(*(agent(episode, n) for n, episode in enumerate(episodes)))
    assert counts == [5] * 4
    for n, episode in enumerate(episodes):
        [one] = episode.trajectory.tries
        assert {episode.trajectory.prompt(step)[0]["content"] for step in one.steps} == {f"{n}"}
        assert {step.model for step in one.steps} == {"scripted@v0003"}


def test_terms_pin_the_policy_and_fill_in_what_is_left_out(endpoint: ScriptedEndpoint, a_client: Clients) -> None:

    def seed(step: int) -> int:
        return 100 + step

    given = terms(
        base_url=endpoint.url,
        headers={"Authorization": "Bearer sk-of-the-policy"},
        sampling={"temperature": 1.0, "max_tokens": 64, "top_k": -1},
        seeds=seed,
    )
    client, episode = a_client("http://127.0.0.1:9/v1"), Episode.seeded(a_tree())
    with episode.one_try("attempt", terms=given):
        say(client, model="policy")
        say(client, temperature=0.5, seed=7, max_completion_tokens=9, extra_body={"model": "policy"})
    one, two = endpoint.received
    assert one.authorization == two.authorization == "Bearer sk-of-the-policy"
    assert one.body["model"] == two.body["model"] == "scripted@v0003"
    wanted = {"temperature": 1.0, "max_tokens": 64, "top_k": -1, "seed": 100}
    assert wanted.items() <= one.body.items()
    assert [s.sampling for s in episode.spans] == [
        wanted,
        {"temperature": 0.5, "seed": 7, "max_completion_tokens": 9, "top_k": -1},
    ]
    assert {s.policy_version for s in episode.spans} == {"v0003"}
    assert "sk-" not in episode.trajectory.model_dump_json()


def test_terms_leave_out_a_filled_field_that_is_refused(a_client: Clients) -> None:
    with ScriptedEndpoint("hi", refuses=["top_k"], model="scripted@v0003") as endpoint:
        client, episode = a_client(endpoint.url), Episode.seeded(a_tree())
        with episode.one_try("attempt", terms=terms(sampling={"top_k": -1, "temperature": 1.0})):
            say(client)
            say(client)
    assert [sorted(r.body.keys() & {"top_k", "temperature", "logprobs"}) for r in endpoint.received] == [
        ["logprobs", "temperature", "top_k"],
        *[["logprobs", "temperature"]] * 2,
    ]
    assert [s.sampling for s in episode.spans] == [{"temperature": 1.0}] * 2


def test_a_call_of_another_model_goes_out_as_it_is(endpoint: ScriptedEndpoint, a_client: Clients) -> None:
    client, episode = a_client(endpoint.url), Episode.seeded(a_tree())
    with episode.one_try("attempt", terms=terms(sampling={"temperature": 1.0}, max_steps=2)):
        say(client, OTHER, model="elsewhere")
        say(client)
    asked = endpoint.received[0].body
    assert asked == {"model": "elsewhere", "messages": OTHER}
    other, own = episode.spans
    assert (other.purpose, other.capability, own.purpose) == ("another model", "eval-only", None)
    assert other.capability_note == "another model: 'elsewhere' was not asked as the policy"
    assert len(episode.trajectory.tries) == 1


def test_a_step_limit_refuses_further_calls(endpoint: ScriptedEndpoint, a_client: Clients) -> None:
    client, episode, given = a_client(endpoint.url), Episode.seeded(a_tree()), terms(max_steps=2)
    with episode.one_try("attempt", terms=given):
        say(client)
        say(client)
        for _ in range(2):
            with pytest.raises(StepLimitError, match="max_steps = 2"):
                say(client)
    assert isinstance(given.failure, StepLimitError)
    assert len(endpoint.received) == len(episode.spans) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_terms_note_how_the_endpoint_failed(stream: bool, a_client: Clients) -> None:
    given = terms()
    with ScriptedEndpoint("hi", faults=[SERVER_ERROR] * 3 + [PROMPT_TOO_LONG], model="scripted@v0003") as endpoint:
        client, episode = a_client(endpoint.url), Episode.seeded(a_tree())
        with episode.one_try("attempt", terms=given):

            def ask(asking: openai.OpenAI = client) -> None:
                if not stream:
                    say(asking)
                else:
                    for _ in asking.chat.completions.create(model="policy", messages=ASK, stream=True):
                        pass

            for kind in (EndpointError, ContextLengthError, None):
                with suppress(openai.APIError):
                    ask()
                assert type(given.failure) is (kind or type(None))
    with episode.one_try("attempt", terms=given), pytest.raises(openai.APIConnectionError):
        ask()
    assert type(given.failure) is UnreachableError
    with (
        ScriptedEndpoint("hi", api_key="sk-right") as endpoint,
        episode.one_try("attempt", terms=given),
        pytest.raises(openai.AuthenticationError),
    ):
        ask(a_client(endpoint.url))
    assert type(given.failure) is AccessError
    assert "sk-application" not in str(given.failure)


def test_calls_after_the_end_of_a_try_are_in_no_record(
    endpoint: ScriptedEndpoint, a_client: Clients, caplog: pytest.LogCaptureFixture
) -> None:
    client, episode = a_client(endpoint.url), Episode.seeded(a_tree())
    with r3agent.trace() as outer, episode.one_try("attempt") as scope:
        stream: Any = client.chat.completions.create(model="scripted", messages=ASK, stream=True)
        next(stream)  # left half-read
        bound = bind(client, episode, scope)
    [half] = episode.spans
    assert half.capability_note == "the stream was left, or broke off, before the completion ended"
    with episode.one_try("attempt"):
        assert say(bound).content == "2 + 2?!"
    assert [*stream]
    assert episode.spans == (half,)
    assert not outer.spans
    assert "its try had ended" in caplog.text


def test_terms_send_to_a_base_url_behind_a_gateway(a_client: Clients) -> None:
    with gateway() as server:
        given = terms(
            base_url=f"{server.url}/openai/v1/chat/completions?api-version=1", headers={"api-key": "sk-of-the-policy"}
        )
        client, episode = a_client("http://127.0.0.1:9/v1"), Episode.seeded(a_tree())
        with episode.one_try("attempt", terms=given):
            say(client, model="policy")
    assert server.last.path == "/openai/v1/chat/completions?api-version=1"
    assert server.last.headers["api-key"] == "sk-of-the-policy"
    assert "sk-application" not in str(server.last.headers)
    assert "sk-of-the-policy" not in episode.trajectory.model_dump_json()
