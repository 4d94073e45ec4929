"""`trace` and `instrument`: plain Python recorded as the tree that training reads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

import r3agent
from r3agent import ConfigError, Recorder, RecordError, groups, load
from r3agent.recording.episode import Episode
from r3agent.store.shards import shards
from r3agent.testing import MALFORMED_JSON, SERVER_ERROR, ScriptedEndpoint
from r3agent.testing.tokens import encode, encode_prompt

ASK: list[Any] = [{"role": "user", "content": "2 + 2?"}]


def a_client(endpoint: ScriptedEndpoint, **settings: Any) -> openai.AsyncOpenAI:
    client = openai.AsyncOpenAI(base_url=endpoint.url, api_key="sk-hidden", max_retries=0)
    return r3agent.instrument(client, **settings)


@pytest.fixture
async def endpoint() -> AsyncIterator[ScriptedEndpoint]:
    with ScriptedEndpoint(lambda body, i: f"{body['messages'][-1]['content']}!") as server:
        yield server


async def say(client: openai.AsyncOpenAI, messages: list[Any] = ASK, **fields: Any) -> Any:
    return await client.chat.completions.create(model="scripted", messages=messages, **fields)


async def test_trace_records_a_reflection_that_earns_a_reward(endpoint: ScriptedEndpoint, tmp_path: Path) -> None:
    async with a_client(endpoint) as client:
        with r3agent.trace(out=tmp_path, metadata={"app": "x"}) as episode:
            first = await say(client, temperature=1.0, user="someone")
            episode.verdict(passed=False, feedback="no")
            with episode.span("reflect", parent=episode.answer) as reflection:
                await say(client, [{"role": "user", "content": "why?"}])
            with episode.span("retry", parent=reflection) as retry:
                await say(
                    client, [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "why?!"}, *ASK]
                )
            episode.verdict(retry, passed=True)
    assert type(first) is openai.types.chat.ChatCompletion
    assert first.choices[0].message.content == "2 + 2?!"
    [stored] = load(tmp_path)
    assert stored == episode.trajectory
    attempt, reflect, _ = stored.spans
    assert [s.label for s in stored.spans] == ["attempt", "reflect", "retry"]
    assert [s.parent_id for s in stored.spans] == [None, attempt.span_id, reflect.span_id]
    assert [s.standalone for s in stored.spans] == [False, True, False]
    assert stored.task.messages == tuple(ASK)
    for span, received in zip(stored.spans, endpoint.received, strict=True):
        assert span.capability == "trainable-exact"
        assert list(span.prompt_token_ids or ()) == encode_prompt(received.body["messages"])
        assert list(span.token_ids or ()) == encode(span.text)
        assert stored.prompt(span) == received.body["messages"]
        assert span.policy_version == "v0000"
    assert attempt.sampling == {"temperature": 1.0}
    assert "the server decided on top_p, top_k" in (attempt.capability_note or "")
    assert [(g.spans_G, g.rewards_G) for g in groups([stored])] == [((reflect,), (1.0,))]
    assert "sk-hidden" not in shards(tmp_path)[0].read_text()


async def test_trace_records_a_continued_conversation_as_a_path(endpoint: ScriptedEndpoint) -> None:
    messages = [*ASK]
    async with a_client(endpoint) as client, r3agent.trace() as episode:
        for question in ("more", "and more"):
            answer = await say(client, messages)
            messages += [answer.choices[0].message, {"role": "user", "content": question}]
        await say(client, messages)
    one, two, three = episode.spans
    assert (two.parent_id, three.parent_id) == (one.span_id, two.span_id)
    assert three.request == ({"role": "user", "content": "and more"},)
    assert not any(s.standalone for s in episode.spans)


async def test_outside_of_a_trace_the_client_is_the_plain_one(endpoint: ScriptedEndpoint) -> None:
    async with a_client(endpoint) as client:
        assert isinstance(client, openai.AsyncOpenAI)
        with r3agent.trace() as episode:
            await say(client)
        await say(client)
    assert [sorted(r.body) for r in endpoint.received] == [
        ["logprobs", "messages", "model", "return_token_ids"],
        ["messages", "model"],
    ]
    assert len(episode.spans) == 1


async def test_streams_are_recorded_as_they_are_read(
    endpoint: ScriptedEndpoint,
) -> None:
    async with a_client(endpoint) as client:
        with r3agent.trace() as episode:
            stream = await say(client, stream=True)
            assert isinstance(stream, openai.AsyncStream)
            pieces = [chunk.choices[0].delta.content async for chunk in stream]
            stream = await say(client, stream=True)
            await anext(stream)  # and is left
        whole, cut = episode.spans
    assert "".join(piece or "" for piece in pieces) == whole.text == "2 + 2?!"
    assert (whole.capability, list(whole.token_ids or ())) == ("trainable-exact", encode(whole.text))
    assert cut.capability == "eval-only"
    assert cut.capability_note == "the stream was left, or broke off, before the completion ended"


async def test_a_user_who_asks_for_the_usage_gets_it(endpoint: ScriptedEndpoint) -> None:
    async with a_client(endpoint) as client:
        with r3agent.trace() as episode:
            stream = await say(client, stream=True, stream_options={"include_usage": True})
            chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage is not None
    assert episode.answer.capability == "trainable-exact"


async def test_raw_responses_and_copies_of_the_client_are_recorded_too(endpoint: ScriptedEndpoint) -> None:
    async with a_client(endpoint) as client:
        with r3agent.trace() as episode:
            raw = await client.chat.completions.with_raw_response.create(model="scripted", messages=ASK)
            await say(client.with_options(timeout=30))
    assert raw.parse().choices[0].message.content == "2 + 2?!"
    assert [s.text for s in episode.spans] == ["2 + 2?!"] * 2


@pytest.mark.parametrize("lacking", [["return_token_ids"], ["logprobs", "return_token_ids"]])
async def test_what_an_endpoint_refuses_is_left_out_from_then_on(lacking: list[str]) -> None:
    with ScriptedEndpoint("hi", refuses=lacking) as endpoint:
        async with a_client(endpoint) as client:
            with r3agent.trace() as episode:
                await say(client)
                await say(client)
    assert [s.capability_note for s in episode.spans] == ["the endpoint returned no token ids"] * 2
    assert len(endpoint.received) == len(lacking) + 2


@pytest.mark.parametrize("asked", [{"temperature": 0.5}, {"top_p": 0.9}, {"extra_body": {"top_k": 20}}])
async def test_what_an_application_samples_otherwise_is_not_trained_on(
    endpoint: ScriptedEndpoint, asked: dict[str, Any]
) -> None:
    async with a_client(endpoint) as client:
        with r3agent.trace() as episode:
            await say(client, **asked)
    [(field, value)] = asked.get("extra_body", asked).items()
    assert (episode.answer.capability, episode.answer.sampling) == ("eval-only", {field: value})
    assert f"sampled with {field} = {value}" in (episode.answer.capability_note or "")


async def test_tokens_are_not_asked_for_where_they_are_not_wanted(endpoint: ScriptedEndpoint) -> None:
    async with a_client(endpoint, tokens=False) as client:
        with r3agent.trace() as episode:
            await say(client, n=2)
    assert sorted(endpoint.received[0].body) == ["messages", "model", "n"]
    assert [s.capability for s in episode.spans] == ["trainable-retokenised"] * 2


async def test_other_tools_than_the_tasks_cannot_be_tokenised_again() -> None:
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {}}}
    with ScriptedEndpoint("hi", ignores=["return_token_ids"]) as endpoint:
        async with a_client(endpoint) as client:
            with r3agent.trace() as episode:
                await say(client, tools=[tool])
                await say(client)
    assert episode.trajectory.task.tools == (tool,)
    assert [s.capability for s in episode.spans] == ["trainable-retokenised", "eval-only"]
    assert "other tools" in (episode.spans[1].capability_note or "")


async def test_an_error_is_recorded_with_the_episode_and_raised(tmp_path: Path) -> None:
    with ScriptedEndpoint("hi", faults=[None, SERVER_ERROR, SERVER_ERROR]) as endpoint, Recorder(tmp_path) as recorder:
        async with a_client(endpoint) as client:

            async def failing(error: Exception | None) -> None:
                with r3agent.trace(recorder=recorder):
                    await say(client)
                    if error is not None:
                        raise error
                    await say(client)

            with pytest.raises(openai.InternalServerError):
                await failing(None)
            with pytest.raises(ZeroDivisionError, match="sk-hidden"):
                await failing(ZeroDivisionError("sk-hidden"))
    failed, quoting = load(tmp_path)
    assert failed.error is not None
    assert failed.error.kind == "InternalServerError"
    assert len(failed.spans) == 1
    assert quoting.error is not None
    assert quoting.error.message == "[the API key]"


async def test_answer_that_cannot_be_recorded_reaches_the_user(caplog: pytest.LogCaptureFixture) -> None:
    with ScriptedEndpoint("hi", edits=[lambda answer: answer.update(choices=[])]) as endpoint:
        async with a_client(endpoint) as client:
            with r3agent.trace() as episode:
                answer = await say(client)
    assert answer.choices == []
    assert episode.spans == ()
    assert "is not recorded" in caplog.text


async def test_an_answer_that_is_no_json_raises_what_the_client_raises() -> None:
    with ScriptedEndpoint(faults=[MALFORMED_JSON] * 2) as endpoint:
        plain = openai.AsyncOpenAI(base_url=endpoint.url, api_key="x", max_retries=0)
        async with r3agent.instrument(plain) as client:
            with pytest.raises(Exception, match=r"Expecting|JSON|EOF|char"), r3agent.trace():
                await say(client)


# ---- side by side ----


async def test_concurrent_tasks_are_episodes_of_their_own(endpoint: ScriptedEndpoint) -> None:
    async with a_client(endpoint) as client:

        async def one(i: int) -> Episode:
            with r3agent.trace() as episode:
                for turn in range(3):
                    await say(client, [{"role": "user", "content": f"{i}/{turn}"}])
            return episode

        episodes = await asyncio.gather(*(one(i) for i in range(6)))
    for i, episode in enumerate(episodes):
        assert [s.text for s in episode.spans] == [f"{i}/{turn}!" for turn in range(3)]


async def test_siblings_asked_at_once_are_one_group(endpoint: ScriptedEndpoint) -> None:
    async with a_client(endpoint) as client:
        with r3agent.trace() as episode:
            await say(client)
            failed = episode.answer
            episode.verdict(failed, passed=False)

            async def reflect(passed: bool) -> None:
                with episode.span("reflect", parent=failed) as reflection:
                    await say(client, [{"role": "user", "content": "why?"}])
                with episode.span("retry", parent=reflection) as retry:
                    await say(client)
                episode.verdict(retry, passed=passed)

            await asyncio.gather(reflect(True), reflect(False))
            with episode.span("reflect", parent=failed) as other:  # asked otherwise: no sibling
                await say(client, [{"role": "user", "content": "what went wrong?"}])
            with episode.span("retry", parent=other) as retry:
                await say(client)
            episode.verdict(retry, passed=True)
    assert sorted(sorted(g.rewards_G) for g in groups([episode.trajectory])) == [[0.0, 1.0], [1.0]]


def test_threads_with_the_sync_client_are_episodes_of_their_own() -> None:
    episodes: dict[int, Episode] = {}
    with ScriptedEndpoint(lambda body, i: body["messages"][-1]["content"]) as endpoint:
        plain = openai.OpenAI(base_url=endpoint.url, api_key="x", max_retries=0)
        with r3agent.instrument(plain) as client:

            def work(i: int) -> None:
                with r3agent.trace() as episodes[i]:
                    for turn in range(3):
                        asked: Any = [{"role": "user", "content": f"{i}/{turn}"}]
                        answer = client.chat.completions.create(model="scripted", messages=asked, stream=turn == 1)
                        if isinstance(answer, openai.Stream):
                            list(answer)

            threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    for i, episode in episodes.items():
        assert [s.text for s in episode.spans] == [f"{i}/{turn}" for turn in range(3)]
        assert {s.capability for s in episode.spans} == {"trainable-exact"}


async def test_what_comes_after_the_block_is_not_recorded(endpoint: ScriptedEndpoint) -> None:
    async with a_client(endpoint) as client:
        ended = asyncio.Event()

        async def straggler() -> None:
            await ended.wait()
            await say(client)

        with r3agent.trace() as episode:
            await say(client)
            task = asyncio.create_task(straggler())
        ended.set()
        await task
    assert len(episode.spans) == 1


# ---- what is refused ----


async def test_verdicts_and_parents_name_spans_of_this_episode(endpoint: ScriptedEndpoint) -> None:
    async with a_client(endpoint) as client:
        with r3agent.trace() as episode:
            with pytest.raises(ConfigError, match="needs a try"):
                episode.verdict(passed=True)
            with pytest.raises(LookupError, match="no try yet"):
                _ = episode.answer
            with pytest.raises(ConfigError, match="none yet"), episode.span("retry", parent="x"):
                pass
            with episode.span("reflect") as thought:
                await say(client)
            with pytest.raises(ConfigError, match="needs a try"):
                episode.verdict(thought, passed=True)


def test_an_episode_in_which_nothing_was_asked_is_not_stored(tmp_path: Path) -> None:
    with r3agent.trace(out=tmp_path) as episode:
        pass
    assert shards(tmp_path) == []
    with pytest.raises(RecordError, match="no task yet"):
        _ = episode.trajectory


def test_an_episode_without_a_span_is_stored_only_if_it_failed(tmp_path: Path) -> None:
    with Recorder(tmp_path) as recorder:
        with r3agent.trace({"messages": ASK}, recorder=recorder):
            pass
        with pytest.raises(ZeroDivisionError), r3agent.trace({"messages": ASK}, recorder=recorder):
            raise ZeroDivisionError
    [failed] = load(tmp_path)
    assert failed.error is not None


def test_trace_refuses_unknown_labels_and_malformed_tasks() -> None:
    unknown: Any = "critic"
    refused = pytest.raises(ConfigError, match=r"'critic'.* one of attempt, reflect, retry")
    with r3agent.trace() as episode, refused, episode.span(unknown):
        raise AssertionError("not entered")
    with pytest.raises(ConfigError, match=r"unknown key 'task.prompt'; .*; give one as in"):
        r3agent.trace({"prompt": "x"})


def test_other_clients_are_refused() -> None:
    with pytest.raises(ConfigError, match="str: instrument"):
        r3agent.instrument("client")  # type: ignore[type-var]


async def test_calls_beside_the_tries_are_labelled_or_left_out(endpoint: ScriptedEndpoint, tmp_path: Path) -> None:
    plain = openai.AsyncOpenAI(base_url=endpoint.url, api_key="x")
    async with a_client(endpoint) as client, r3agent.instrument(plain, purpose="summariser") as summariser:
        with r3agent.trace(out=tmp_path) as episode:
            with episode.aside("router"):
                await say(client, [{"role": "user", "content": "Which?"}])
            await say(client)
            with r3agent.unrecorded():
                await say(client)
                await asyncio.to_thread(lambda: None)
            episode.verdict(passed=False)
            await say(summariser, [{"role": "user", "content": "In short?"}])
            with episode.span("retry", parent=episode.answer):
                await say(client)
            episode.verdict(passed=True)
    [tree] = load(tmp_path)
    assert [(s.label, s.purpose, s.passed) for s in tree.spans] == [
        ("attempt", "router", None),
        ("attempt", None, False),
        ("attempt", "summariser", None),
        ("retry", None, True),
    ]
    assert [(t.label, t.passed) for t in tree.tries] == [("attempt", False), ("retry", True)]
    assert tree.attempt == tree.spans[1]
    assert tree.task.messages == tuple(ASK)  # the router's call was the first
    assert [tree.prompt(s)[-1]["content"] for s in tree.spans[:2]] == ["Which?", "2 + 2?"]
    assert not tree.spans[1].standalone
    asides = tree.spans[::2]
    assert {(s.capability, s.parent_id, s.policy_version) for s in asides} == {("eval-only", None, None)}
    assert [sorted(endpoint.received[i].body) for i in (0, 2, 3)] == [["messages", "model"]] * 3


async def test_asides_of_one_try_are_its_steps(endpoint: ScriptedEndpoint) -> None:
    async with a_client(endpoint) as client:
        with r3agent.trace() as episode, episode.one_try("attempt"):
            with episode.aside("router"):
                await asyncio.gather(say(client), asyncio.to_thread(lambda: None))
            await say(client, [{"role": "user", "content": "?"}])
    [one] = episode.trajectory.tries
    assert [step.purpose for step in one.steps] == ["router", None]


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ({"passed": True}, r3agent.Verdict(passed=True, score=1)),
        ({"score": 0.5, "feedback": "half"}, r3agent.Verdict(passed=False, score=0.5, feedback="half")),
        ({"score": 1}, r3agent.Verdict(passed=True, score=1)),
        ({"verdict": r3agent.Verdict(passed=True, score=0.7)}, r3agent.Verdict(passed=True, score=0.7)),
        ({"verdict": False, "feedback": ["a"]}, r3agent.Verdict(passed=False, score=0, feedback='["a"]')),
        ({}, "0 of passed, score and verdict"),
        ({"passed": True, "score": 1.0}, "2 of passed, score and verdict"),
        ({"score": 2}, "score=0 to 1"),
        ({"passed": "no"}, "passed=True or False"),
        ({"verdict": "good"}, "a verifier returns as verdict="),
    ],
)
async def test_verdict_takes_what_a_verifier_returns(
    given: dict[str, Any], verdict: r3agent.Verdict | str, endpoint: ScriptedEndpoint
) -> None:
    async with a_client(endpoint) as client:
        with r3agent.trace() as episode:
            await say(client)
            if isinstance(verdict, str):
                with pytest.raises(ConfigError, match=verdict):
                    episode.verdict(**given)
            else:
                episode.verdict(**given, answer="4, I think")
                assert episode.answer.verdict == verdict
                assert episode.trajectory.tries[-1].message["content"] == "4, I think"


async def test_verdict_on_a_step_is_on_the_last_of_its_try() -> None:
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    with ScriptedEndpoint(lambda body, i: "4" if len(body["messages"]) > 1 else {"tool_calls": calls}) as server:
        async with a_client(server) as client:
            with r3agent.trace() as episode:
                await say(client)
                first = episode.answer
                turn = {"role": "assistant", "content": "", "tool_calls": calls}
                await say(client, [*ASK, turn, {"role": "tool", "tool_call_id": "1", "content": "4"}])
                episode.verdict(first, score=1.0)
                assert [s.passed for s in episode.spans] == [None, True]
                await say(client)
                episode.verdict(first, passed=False)
    assert [s.passed for s in episode.spans] == [None, False, None]
    assert [len(a_try.steps) for a_try in episode.trajectory.tries] == [2, 1]
