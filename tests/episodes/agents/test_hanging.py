"""Agents, tools and worlds that hang and swallow cancellation: they fail their try, and nothing waits for them."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI

from r3agent import Task, build_graph, collect, load
from r3agent.testing import ScriptedEndpoint
from tests.episodes.agents.endpoints import TASK, found, looking, policy_at, trajectory

ASK: Any = {"model": "policy"}


async def for_ever() -> None:
    while True:
        try:
            await asyncio.Event().wait()
        except BaseException:
            continue


async def hangs(messages: list[Any], client: AsyncOpenAI, task: Task) -> Any:
    answer = await client.chat.completions.create(**ASK, messages=messages)
    if task.id == "hangs":
        await for_ever()
    return answer.choices[0].message


async def asks_for_ever(messages: list[Any], client: AsyncOpenAI) -> None:
    while True:
        try:
            await client.chat.completions.create(**ASK, messages=messages)
        except BaseException:
            continue


def hangs_in_thread(messages: list[Any], client: OpenAI) -> None:
    client.chat.completions.create(**ASK, messages=messages)
    threading.Event().wait()


class Stop(BaseException):
    pass


async def stops(messages: list[Any], client: AsyncOpenAI) -> None:
    raise Stop


def interrupts(messages: list[Any], client: OpenAI) -> None:
    raise KeyboardInterrupt


async def test_collect_ends_though_an_agent_hangs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tasks = [{**TASK["task"], "id": name} for name in ("hangs", "a", "b")]
    with ScriptedEndpoint("a ball") as endpoint, caplog.at_level(logging.WARNING):
        async with policy_at(endpoint) as policy:
            limits: Any = {"max_attempts": 1, "try_timeout_s": 1.0}
            await collect(tasks, policy=policy, verifier=found, out=tmp_path, agent=hangs, **limits)
    hung, *others = sorted(load(tmp_path), key=lambda t: t.task.id != "hangs")
    assert [t.passed for t in others] == [True, True]
    assert [(s.text, str(None if s.verdict is None else s.verdict.feedback)) for s in hung.spans] == [
        ("a ball", "no answer within try_timeout_s = 1")
    ]
    assert "FunctionAgent(hangs), in a try of task 'hangs', goes on after it was cancelled" in caplog.text


@pytest.mark.parametrize("agent", [asks_for_ever, hangs_in_thread], ids=lambda agent: agent.__name__)
async def test_agent_that_never_ends_fails_its_try(agent: Any) -> None:
    with ScriptedEndpoint("a ball") as endpoint:
        async with policy_at(endpoint) as policy:
            options: Any = {"max_attempts": 1, "try_timeout_s": 1.0, "max_steps": 2}
            output = await build_graph(policy=policy, verifier=found, agent=agent, **options).compile().ainvoke(TASK)
            n_calls = len(endpoint.received)
    (attempt,) = trajectory(output).tries
    assert attempt.passed is False
    assert len(attempt.steps) == n_calls <= 2


@pytest.mark.parametrize("agent", [stops, interrupts])
async def test_agent_that_ends_the_process_fails_alone(agent: Any) -> None:
    with ScriptedEndpoint("a ball") as endpoint:
        async with policy_at(endpoint) as policy:
            graph = build_graph(policy=policy, verifier=found, agent=agent, agent_errors="record", max_attempts=1)
            output = await graph.compile().ainvoke(TASK)
    error = trajectory(output).error
    assert error is not None
    assert error.kind == "AgentError"


async def test_tool_that_hangs_is_told_to_the_policy() -> None:
    async def look(key: str) -> str:
        """Look into a box."""
        await for_ever()
        return key

    def model(body: Any, choice: int) -> Any:
        return "a ball" if body["messages"][-1]["role"] == "tool" else looking("k")

    with ScriptedEndpoint(model) as endpoint:
        async with policy_at(endpoint) as policy:
            graph = build_graph(policy=policy, verifier=found, tools=[look], tool_timeout_s=0.2, max_attempts=1)
            output = await graph.compile().ainvoke(TASK)
    assert output["passed"]
    assert "look gave no result within 0.2 seconds" in str(trajectory(output).spans[-1].request)


@pytest.mark.parametrize("when", ["opened", "closed"])
async def test_world_that_hangs_is_left_behind(when: str) -> None:
    @asynccontextmanager
    async def world(task: Task) -> AsyncGenerator[None]:
        if when == "opened":
            await for_ever()
        yield
        await for_ever()

    async def agent(messages: list[Any], client: AsyncOpenAI) -> str:
        return "a ball"

    with ScriptedEndpoint("a ball") as endpoint:
        async with policy_at(endpoint) as policy:
            options: Any = {"agent_errors": "record", "max_attempts": 1, "try_timeout_s": 0.2}
            graph = build_graph(policy=policy, verifier=found, agent=agent, environment=world, **options)
            output = await graph.compile().ainvoke(TASK)
    assert f"cannot be {when}: TimeoutError: it took longer than try_timeout_s = 0.2, and swallows" in str(
        trajectory(output).error
    )
