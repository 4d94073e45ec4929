"""Calls that a trace would lose: threads, generators, other clients and methods, an episode that is entered again."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import openai
import pytest
from pydantic import BaseModel

import r3agent
from r3agent import load
from r3agent.recording.episode import Episode
from r3agent.testing import ScriptedEndpoint

ASK: list[Any] = [{"role": "user", "content": "2 + 2?"}]
Say = Callable[..., str]


@pytest.fixture
def endpoint() -> Iterator[ScriptedEndpoint]:
    with ScriptedEndpoint(lambda body, i: f"{body['messages'][-1]['content']}!") as server:
        yield server


@pytest.fixture
def client(endpoint: ScriptedEndpoint) -> Iterator[openai.OpenAI]:
    with r3agent.instrument(openai.OpenAI(base_url=endpoint.url, api_key="x", max_retries=0)) as client:
        yield client


@pytest.fixture
def say(client: openai.OpenAI) -> Say:
    def say(text: str = "2 + 2?") -> str:
        messages: Any = [{"role": "user", "content": text}]
        return client.chat.completions.create(model="scripted", messages=messages).choices[0].message.content or ""

    return say


def texts(episode: Episode) -> list[str]:
    return [span.text for span in episode.spans]


# ---- threads ----


def test_calls_in_threads_that_enter_the_episode_are_recorded(say: Say, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool, r3agent.trace(out=tmp_path) as episode:

        def ask(i: int) -> str:
            with episode:
                return say(f"{i}")

        answers = [*pool.map(ask, range(8))]
    assert sorted(texts(episode)) == sorted(answers) == [f"{i}!" for i in range(8)]
    assert load(tmp_path) == [episode.trajectory]


def test_calls_in_other_threads_are_warned_about(say: Say, caplog: pytest.LogCaptureFixture) -> None:
    with ThreadPoolExecutor(2, "workers") as pool, r3agent.trace() as episode:
        assert [*pool.map(say, "abcd")] == ["a!", "b!", "c!", "d!"]
        say("e")
    assert texts(episode) == ["e!"]
    warning, count = caplog.messages
    assert warning.startswith("/chat/completions in workers_")
    assert count == "4 calls of threads in no trace were made while this one was open: not recorded"
    assert "enter `with episode:` in this thread too" in warning


def test_calls_in_a_thread_with_its_own_trace_are_its_own(say: Say, caplog: pytest.LogCaptureFixture) -> None:
    def alone() -> Episode:
        with r3agent.trace() as own:
            say("own")
        return own

    with ThreadPoolExecutor(1) as pool, r3agent.trace() as episode:
        other = pool.submit(alone).result()
        say("outer")
    assert (texts(other), texts(episode), caplog.messages) == (["own!"], ["outer!"], [])


def test_error_of_the_block_is_recorded_if_a_thread_ends_last(say: Say, tmp_path: Path) -> None:
    entered, failed = Event(), Event()
    episode = r3agent.trace(out=tmp_path)

    def late() -> None:
        with episode:
            entered.set()
            failed.wait()
            say("after")

    def failing(pool: ThreadPoolExecutor) -> None:
        with episode:
            pool.submit(late)
            entered.wait()
            say("before")
            raise ZeroDivisionError

    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(ZeroDivisionError):
            failing(pool)
        failed.set()
    [stored] = load(tmp_path)
    assert stored.error is not None
    assert (stored.error.kind, [span.text for span in stored.spans]) == ("ZeroDivisionError", ["before!", "after!"])


# ---- generators, iterated elsewhere ----


def test_generator_records_in_every_thread_that_iterates_it(say: Say, tmp_path: Path) -> None:
    def answers() -> Iterator[str]:
        with r3agent.trace(out=tmp_path) as episode:
            yield say("a")
            with episode.span("reflect", parent=episode.answer):
                yield say("b")
                yield say("c")
            yield say("d")

    generator = answers()
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two:
        found = [pool.submit(next, generator, None).result() for pool in (one, two, one, two, one)]
    assert found == ["a!", "b!", "c!", "d!", None]
    [stored] = load(tmp_path)
    assert [(span.text, span.label) for span in stored.spans] == [
        *(("a!", "attempt"), ("b!", "reflect"), ("c!", "reflect"), ("d!", "attempt"))
    ]


def test_generators_in_one_context_do_not_mix(say: Say) -> None:
    episodes: dict[str, Episode] = {}

    def answers(name: str) -> Iterator[str]:
        with r3agent.trace() as episodes[name]:
            for i in range(3):
                yield say(f"{name}{i}")

    with r3agent.trace() as outer:
        say("outer")
        assert len([*zip(answers("a"), answers("b"), strict=True)]) == 3
        say("outer")
    assert [texts(episodes[name]) for name in "ab"] == [[f"{name}{i}!" for i in range(3)] for name in "ab"]
    assert texts(outer) == ["outer!"] * 2


@contextmanager
def traced() -> Generator[Episode]:
    with r3agent.trace() as episode:
        yield episode


def test_context_manager_of_the_application_is_a_block(say: Say) -> None:
    with r3agent.trace() as outer:
        with traced() as inner:
            say("inner")
            with inner.span("reflect"):
                say("thought")
        say("outer")
    assert (texts(inner), texts(outer)) == (["inner!", "thought!"], ["outer!"])
    assert [span.label for span in inner.spans] == ["attempt", "reflect"]


async def test_async_generator_records_in_every_task(endpoint: ScriptedEndpoint) -> None:
    plain = openai.AsyncOpenAI(base_url=endpoint.url, api_key="x", max_retries=0)
    async with r3agent.instrument(plain) as client:

        async def answers() -> AsyncIterator[Episode]:
            async with r3agent.trace() as episode:
                for _ in range(3):
                    await client.chat.completions.create(model="scripted", messages=ASK)
                    yield episode

        generator = answers()

        async def one() -> Any:
            return await anext(generator, None)

        episode, *_ = [await asyncio.create_task(one(), context=contextvars.Context()) for _ in range(4)]
    assert texts(episode) == ["2 + 2?!"] * 3


async def test_task_in_a_trace_of_its_own_is_not_its_callers(endpoint: ScriptedEndpoint) -> None:
    plain = openai.AsyncOpenAI(base_url=endpoint.url, api_key="x", max_retries=0)
    async with r3agent.instrument(plain) as client:

        async def one() -> Episode:
            with ExitStack() as stack:
                episode = stack.enter_context(r3agent.trace())
                await client.chat.completions.create(model="scripted", messages=ASK)
            return episode

        with r3agent.trace() as outer:
            inner = await asyncio.gather(*(one() for _ in range(3)))
    assert [len(episode.spans) for episode in (*inner, outer)] == [1, 1, 1, 0]


# ---- after the block ----


def test_stream_read_after_the_block_is_warned_about(client: openai.OpenAI, caplog: pytest.LogCaptureFixture) -> None:
    with r3agent.trace() as episode:
        unread = client.chat.completions.create(model="scripted", messages=ASK, stream=True)
        begun = client.chat.completions.create(model="scripted", messages=ASK, stream=True)
        next(begun)
    assert len([*unread, *begun]) > 3
    assert [span.capability for span in episode.spans] == ["eval-only"]
    assert "nothing of it was read inside of its trace" in caplog.text
    assert "a stream was read after its trace had ended" in caplog.text


async def test_task_that_outlives_the_block_is_warned_about(
    endpoint: ScriptedEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    plain = openai.AsyncOpenAI(base_url=endpoint.url, api_key="x", max_retries=0)
    async with r3agent.instrument(plain) as client:
        ended = asyncio.Event()

        async def straggler() -> None:
            await ended.wait()
            await client.chat.completions.create(model="scripted", messages=ASK)

        with r3agent.trace() as outer:
            with r3agent.trace() as inner:
                tasks = [asyncio.create_task(straggler())]
            ended.set()
            await tasks.pop()
            ended.clear()
            tasks.append(asyncio.create_task(straggler()))
        ended.set()
        await tasks.pop()
    assert (len(outer.spans), len(inner.spans)) == (1, 0)
    assert "the trace in which this code was started has ended" in caplog.text


def test_episode_that_ended_is_not_entered_again(say: Say, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with r3agent.trace(out=tmp_path) as episode:
        say("a")
    with r3agent.trace() as outer, episode:
        say("b")
        with episode.span("retry"):
            say("c")
    assert (texts(episode), texts(outer)) == (["a!"], ["b!", "c!"])
    assert load(tmp_path) == [episode.trajectory]
    assert caplog.messages == [
        "the episode has ended: calls in this block are not recorded with it; begin another trace()"
    ]


# ---- other clients and methods ----


def test_trace_with_a_refused_call_blames_no_client(client: openai.OpenAI, caplog: pytest.LogCaptureFixture) -> None:
    with r3agent.trace(), suppress(openai.NotFoundError):
        client.chat.completions.create(model="unknown", messages=ASK)
    assert caplog.messages == []


def test_verdict_after_the_episode_is_told_to_be_lost(
    say: Say, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with r3agent.trace(out=tmp_path) as episode:
        say()
    episode.verdict(passed=True)
    [warning] = caplog.messages
    assert f"r3agent.label(STORE, {episode.trajectory.trajectory_id!r}, passed=True)" in warning


def test_trace_without_a_call_names_the_likely_causes(
    endpoint: ScriptedEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    plain = openai.OpenAI(base_url=endpoint.url, api_key="x", max_retries=0)
    with r3agent.instrument(plain), plain, r3agent.trace():
        plain.chat.completions.create(model="scripted", messages=ASK)
    [warning] = caplog.messages
    assert warning.startswith("the trace ends without a recorded call: ")
    assert "a sync and an async one" in warning


def test_answer_of_another_client_is_warned_about(
    client: openai.OpenAI, endpoint: ScriptedEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    messages = [*ASK]
    with openai.OpenAI(base_url=endpoint.url, api_key="x", max_retries=0) as plain, r3agent.trace() as episode:
        for asked in (client, plain, client):
            answer = asked.chat.completions.create(model="scripted", messages=messages)
            messages += [answer.choices[0].message, {"role": "user", "content": "more"}]
    assert len(episode.spans) == 2
    assert episode.spans[1].parent_id == episode.spans[0].span_id
    [warning] = caplog.messages
    assert "continues with an answer that was not recorded" in warning


@pytest.mark.parametrize("method", ["responses", "completions"])
def test_other_generations_are_warned_about_by_name(
    client: openai.OpenAI, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    asks: Any = {
        "responses": partial(client.responses.create, model="scripted", input="hi"),
        "completions": partial(client.completions.create, model="scripted", prompt="hi"),
    }
    with r3agent.trace():
        for _ in range(2):
            with pytest.raises(openai.NotFoundError):
                asks[method]()
    assert caplog.messages[0].startswith(f"/{method}: a call is not recorded: only chat completions are")
    assert len(caplog.messages) == 2  # and that the trace has no call


class Number(BaseModel):
    value: int


def test_other_methods_of_chat_completions_are_recorded(caplog: pytest.LogCaptureFixture) -> None:
    with ScriptedEndpoint('{"value": 4}') as endpoint:
        plain = openai.OpenAI(base_url=endpoint.url, api_key="x", max_retries=0)
        with r3agent.instrument(plain) as client, r3agent.trace() as episode:
            same: Any = {"model": "scripted", "messages": ASK}
            completions = client.with_options(timeout=30).chat.completions
            parsed = completions.parse(**same, response_format=Number).choices[0].message.parsed
            client.beta.chat.completions.parse(**same, response_format=Number)
            with completions.stream(**same) as stream:
                final = stream.get_final_completion()
            client.with_raw_response.chat.completions.create(**same)
            raw = completions.with_raw_response.create(**same, stream=True)
            streamed = "".join(chunk.choices[0].delta.content or "" for chunk in raw.parse() if chunk.choices)
            assert len(episode.spans) == 5
            with completions.with_streaming_response.create(**same) as response:
                assert b"value" in response.read()
    assert parsed == Number(value=4)
    assert streamed == final.choices[0].message.content == '{"value": 4}'
    assert [span.text for span in episode.spans] == ['{"value": 4}'] * 5
    assert [span.capability for span in episode.spans[2:]] == ["trainable-exact"] * 3
    [warning] = caplog.messages
    assert warning.endswith("the application reads it; use with_raw_response")
