"""Budgets of an episode within the tries of agents: which calls are sent, and how a try that is stopped ends."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.tools import tool
from openai import AsyncOpenAI, OpenAI

from r3agent import build_graph
from r3agent.episodes.agents.program import Program
from r3agent.episodes.budget import ENDED
from r3agent.testing import ScriptedEndpoint
from tests.episodes.agents.endpoints import TASK, chat, found, looking, policy_at, trajectory

ASK: Any = {"model": "policy"}
PRICES = {"prompt": 0, "sampled": 1e6}
"""Prices by which a sampled token costs 1."""
SCRIPT = "import openai\nask = openai.OpenAI().chat.completions.create\nwhile True: ask(model='policy', messages=[{}])"


def look(key: str) -> str:
    """Look into a box."""
    return "nothing"


def asks(messages: list[Any], client: OpenAI) -> None:
    while True:
        client.chat.completions.create(**ASK, messages=messages)


async def swallows(messages: list[Any], client: AsyncOpenAI) -> None:
    while True:
        try:
            await client.chat.completions.create(**ASK, messages=messages)
        except Exception:
            await asyncio.sleep(0)


async def waits(messages: list[Any], client: AsyncOpenAI) -> None:
    await client.chat.completions.create(**ASK, messages=messages)
    await asyncio.Event().wait()


def agent_at(endpoint: ScriptedEndpoint) -> Any:
    return create_agent(chat(endpoint), tools=[tool(look)])


@pytest.mark.parametrize("budget", [{"max_tokens_total": 1}, {"max_cost": 1, "prices": PRICES}, {"max_seconds": 0.5}])
@pytest.mark.parametrize("given", [asks, swallows, waits, agent_at, Program([sys.executable, "-c", SCRIPT]), look])
async def test_try_ends_when_a_budget_is_spent(given: Any, budget: dict[str, Any]) -> None:
    if given is waits and "max_seconds" not in budget:
        pytest.skip("it asks for nothing that the budget could refuse")
    with ScriptedEndpoint(looking("k") if given in (agent_at, look) else "a ball") as endpoint:
        async with policy_at(endpoint) as policy:
            made: Any = (
                {"tools": [look]} if given is look else {"agent": agent_at(endpoint) if given is agent_at else given}
            )
            graph = build_graph(policy=policy, verifier=found, max_steps=10**6, try_timeout_s=None, **made).compile()
            output = await graph.ainvoke(TASK, context=budget)
            n_calls = len(endpoint.received)
    tree = trajectory(output)
    [a_try] = tree.tries
    assert (a_try.verdict, output["passed"]) == (None, None)
    assert tree.error is not None
    assert (tree.error.kind, tree.error.message) == ("BudgetError", tree.metadata[ENDED])
    assert next(iter(budget)) in tree.error.message
    if "max_seconds" not in budget:
        assert len(a_try.steps) == n_calls == 1


async def test_try_ends_in_time_if_the_clock_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def agent(messages: list[Any], client: AsyncOpenAI) -> None:
        monkeypatch.setattr(time, "time", lambda: 0.0)
        await waits(messages, client)

    with ScriptedEndpoint("a ball") as endpoint:
        async with policy_at(endpoint) as policy:
            graph = build_graph(policy=policy, verifier=found, agent=agent, try_timeout_s=None).compile()
            output = await asyncio.wait_for(graph.ainvoke(TASK, context={"max_seconds": 0.5}), 60)
    assert str(trajectory(output).metadata[ENDED]).startswith("max_seconds = 0.5: ")


async def test_tries_that_run_at_once_share_a_budget() -> None:
    async def agent(messages: list[Any], client: AsyncOpenAI) -> None:
        while True:
            await client.chat.completions.create(**ASK, messages=messages)
            if messages[-1]["content"] == TASK["task"]["messages"][-1]["content"]:
                return  # the first try

    with ScriptedEndpoint("hm") as endpoint:
        async with policy_at(endpoint) as policy:
            graph = build_graph(policy=policy, verifier=found, agent=agent, max_steps=10**6, reflections=4).compile()
            per_call = trajectory(await graph.ainvoke(TASK, context={"max_attempts": 1})).spans[0].completion_tokens
            del endpoint.received[:]
            budget = {"max_cost": (1 + 4 + 8) * (per_call or 0), "prices": PRICES}
            tree = trajectory(await graph.ainvoke(TASK, context=budget))
    assert 13 <= len(tree.spans) <= 13 + 4  # those in flight
    assert len(endpoint.received) == len(tree.spans) - 3  # one request for all reflections
    assert [a_try.passed for a_try in tree.tries] == [False, *[None] * 4]
    assert {a_try.error and a_try.error.kind for a_try in tree.tries[1:]} == {"BudgetError"}
    assert tree.error is None
    assert "max_cost" in tree.metadata[ENDED]
