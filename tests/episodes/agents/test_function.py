"""Functions as agents: a client of the policy's endpoint, and every call on the record."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI

from r3agent import ConfigError, Task, build_graph
from r3agent.errors import AgentError
from r3agent.testing import ScriptedEndpoint, ScriptedPolicy
from tests.episodes.agents.endpoints import HINT, TASK, found, looking, model, policy_at, steps, trajectory

TOOLS: Any = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
MORE: Any = {"role": "user", "content": "sure?"}


async def run(agent: Any, answer: Any = "a ball", **options: Any) -> tuple[Any, list[Any]]:
    """Run an agent against an endpoint; return the graph's output and the bodies of the requests."""
    with ScriptedEndpoint(answer) as endpoint:
        endpoint.adapters.append("other")
        async with policy_at(endpoint) as policy:
            graph = build_graph(policy=policy, verifier=found, agent=agent, **options).compile()
            return await graph.ainvoke(TASK), [received.body for received in endpoint.received]


async def text(messages: list[Any], client: AsyncOpenAI) -> str | None:
    return (await client.chat.completions.create(model="policy", messages=messages)).choices[0].message.content


async def message(messages: list[Any], client: AsyncOpenAI) -> Any:
    return (await client.chat.completions.create(model="policy", messages=messages)).choices[0].message


async def completion(messages: list[Any], client: AsyncOpenAI) -> Any:
    return await client.chat.completions.create(model="policy", messages=messages)


async def as_json(messages: list[Any], client: AsyncOpenAI) -> Any:
    return (await completion(messages, client)).choices[0].message.model_dump()


async def none(messages: list[Any], client: AsyncOpenAI) -> None:
    await completion(messages, client)


async def streamed(messages: list[Any], client: AsyncOpenAI) -> str:
    stream = await client.chat.completions.create(model="policy", messages=messages, stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


def sync(messages: list[Any], client: OpenAI) -> Any:
    return client.chat.completions.create(model="policy", messages=messages).choices[0].message


class Agent:
    async def __call__(self, messages: list[Any], client: AsyncOpenAI) -> Any:
        return await text(messages, client)


AGENTS = [text, message, completion, as_json, none, streamed, sync, Agent()]


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: getattr(agent, "__name__", "object"))
async def test_function_answers_in_any_form(agent: Any) -> None:
    output, (body,) = await run(agent)
    assert (output["answer"], output["passed"]) == ("a ball", True)
    [span] = trajectory(output).spans
    assert (span.capability, span.answer, span.error) == ("trainable-exact", None, None)
    assert (body["model"], body["max_tokens"]) == ("scripted", 99)


async def test_function_with_tools_learns_from_its_failed_try() -> None:
    async def agent(messages: list[Any], client: AsyncOpenAI, environment: Any = None, task: Any = None) -> Any:
        assert isinstance(task, Task)
        while True:
            answer = await client.chat.completions.create(model="scripted", messages=messages, tools=TOOLS)
            told = answer.choices[0].message
            messages.append(told.model_dump(exclude_none=True))
            if not told.tool_calls:
                return told
            messages.append({"role": "tool", "tool_call_id": told.tool_calls[0].id, "content": "a ball"})

    output, bodies = await run(agent, model)
    assert steps(output) == [["look", "nothing"], ["look", "a ball"]]
    assert [m["content"] for m in bodies[-1]["messages"] if m["role"] == "assistant"][:3] == ["", "nothing", HINT]
    assert all(span.capability == "trainable-exact" for span in trajectory(output).spans)


async def test_calls_of_tasks_threads_and_choices_are_one_try() -> None:
    async def parallel(messages: list[Any], client: AsyncOpenAI) -> Any:
        asked = [completion([*messages, {"role": "user", "content": str(i)}], client) for i in range(3)]
        await asyncio.gather(*asked)
        several = await client.chat.completions.create(model="policy", messages=messages, n=2)
        return several.choices[1].message

    def threads(messages: list[Any], client: OpenAI) -> Any:
        with ThreadPoolExecutor(5) as pool:
            answers = pool.map(lambda i: sync([*messages, {"role": "user", "content": str(i)}], client), range(5))
        return list(answers)[-1]

    for agent in (parallel, threads):
        output, _ = await run(agent, retries=2)
        [a_try] = trajectory(output).tries
        assert [step.capability for step in a_try.steps] == ["trainable-exact"] * 5
        assert output["passed"]


async def test_episodes_at_once_do_not_mix() -> None:
    def echo(body: Any, choice: int) -> str:
        return str(body["messages"][0]["content"])

    def own(task: Any, answer: str) -> bool:
        return answer == task.messages[0]["content"]

    with ScriptedEndpoint(echo) as endpoint:
        async with policy_at(endpoint) as policy:
            for agent in (text, sync):
                graph = build_graph(policy=policy, verifier=own, agent=agent).compile()
                tasks = [{"id": str(i), "messages": [{"role": "user", "content": f"q{i}"}]} for i in range(20)]
                outputs = await asyncio.gather(*(graph.ainvoke({"task": task}) for task in tasks))
                assert all(output["passed"] for output in outputs)
            assert graph.invoke(TASK)["passed"]


async def test_changed_messages_and_other_models_are_recorded_as_sent() -> None:
    async def agent(messages: list[Any], client: AsyncOpenAI) -> Any:
        messages[0]["content"] = "changed"
        await client.chat.completions.create(model="other", messages=messages)
        await client.chat.completions.create(model="policy", messages=[*messages, MORE])

    output, bodies = await run(agent, max_attempts=1)
    other, own = trajectory(output).spans
    assert [body["model"] for body in bodies] == ["other", "scripted"]
    assert (other.purpose, other.capability) == ("another model", "eval-only")
    assert (own.capability, own.standalone) == ("trainable-exact", True)
    assert [m["content"] for m in own.request] == ["changed", "sure?"]
    assert trajectory(output).task.messages[0]["content"] == "What is in box k?"


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_agent_that_never_stops_fails(kind: str) -> None:
    async def swallows(messages: list[Any], client: AsyncOpenAI) -> Any:
        while True:
            try:
                await text(messages, client)
            except Exception:
                continue

    def swallows_in_thread(messages: list[Any], client: OpenAI) -> Any:
        while True:
            try:
                sync(messages, client)
            except Exception:
                continue

    output, bodies = await run(swallows if kind == "async" else swallows_in_thread, max_attempts=1, max_steps=3)
    assert steps(output) == [["a ball"] * 3]
    assert len(bodies) == 3
    assert output["passed"] is False
    assert "max_steps = 3" in str(trajectory(output).tries[0].verdict)


async def test_agent_at_its_limit_fails_although_other_calls_end_later() -> None:
    async def at_once(messages: list[Any], client: AsyncOpenAI) -> str:
        asked = await asyncio.gather(*(text(messages, client) for _ in range(3)), return_exceptions=True)
        raise RuntimeError(f"no answer among {asked}")

    output, _ = await run(at_once, max_attempts=1, max_steps=2)
    assert steps(output) == [["a ball"] * 2]
    assert "max_steps = 2" in str(trajectory(output).tries[0].verdict)


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_agent_that_hangs_fails_and_can_ask_no_more(kind: str) -> None:
    over, late = threading.Event(), list[BaseException]()

    async def hangs(messages: list[Any], client: AsyncOpenAI) -> Any:
        await text(messages, client)
        await asyncio.Event().wait()

    def hangs_in_thread(messages: list[Any], client: OpenAI) -> Any:
        sync(messages, client)
        over.wait()
        try:
            sync(messages, client)
        except BaseException as error:
            late.append(error)
            raise

    output, bodies = await run(hangs if kind == "async" else hangs_in_thread, max_attempts=1, try_timeout_s=0.3)
    assert "try_timeout_s = 0.3" in str(trajectory(output).tries[0].verdict)
    over.set()
    if kind == "sync":
        while not late:
            await asyncio.sleep(0.01)
        assert isinstance(late[0], asyncio.CancelledError)
    assert len(bodies) == 1


async def test_task_left_running_can_ask_no_more() -> None:
    go_on, left = asyncio.Event(), list[asyncio.Task[Any]]()

    async def agent(messages: list[Any], client: AsyncOpenAI) -> Any:
        async def later() -> None:
            await go_on.wait()
            await text(messages, client)

        left.append(asyncio.create_task(later()))
        return await text(messages, client)

    output, _ = await run(agent)
    go_on.set()
    await asyncio.wait(left)
    assert left[0].cancelled()
    assert steps(output) == [["a ball"]]


async def test_answer_that_is_none_of_these_is_an_error() -> None:
    async def number(messages: list[Any], client: AsyncOpenAI) -> Any:
        return 42

    def coroutine(messages: list[Any], client: OpenAI) -> Any:
        return text(messages, client)  # pyright: ignore[reportArgumentType]

    for agent, why in ((number, "returned 42: no answer"), (coroutine, "async def")):
        with pytest.raises(AgentError, match=why):
            await run(agent)


async def test_function_that_does_not_fit_is_refused() -> None:
    async def one(messages: list[Any]) -> Any: ...
    async def more(messages: list[Any], client: Any, world: Any) -> Any: ...
    async def generator(messages: list[Any], client: Any) -> Any:
        yield looking

    refused = {
        "does not take": [one, more],
        "yields": [generator],
        "a class; pass an instance": [Agent],
        "a text": ["module:agent"],
        "no agent": [7, object()],
    }
    for why, agents in refused.items():
        for agent in agents:
            with pytest.raises(ConfigError, match=why):
                await run(agent)
    with pytest.raises(ConfigError, match="has none; pass an OpenAIPolicy"):
        build_graph(policy=ScriptedPolicy("hm"), verifier=found, agent=text)
    with pytest.raises(ConfigError, match="has its own tools"):
        await run(text, tools=[looking])
