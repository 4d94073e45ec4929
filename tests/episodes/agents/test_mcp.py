"""MCP servers: a session for each try, whose tools the policy calls, closed whatever happens."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt

from r3agent import ConfigError, build_graph
from r3agent.episodes.agents.mcp import McpServer
from r3agent.errors import AgentError
from tests.episodes.agents.scripts import ANSWER, TASK, always, answers, calling, episode

SERVER = Path(__file__).with_name("shop_server.py")


def shop(*args: object) -> McpServer:
    return McpServer(sys.executable, [str(SERVER), *map(str, args)])


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def none_is_left(pids: Path) -> int:
    """Wait until all servers have ended; return how many there were."""
    started = [int(line) for line in pids.read_text().split()]
    async with asyncio.timeout(30):
        while any(map(is_alive, started)):
            await asyncio.sleep(0.05)
    return len(started)


async def test_server_has_a_fresh_state_in_each_try(tmp_path: Path) -> None:
    steps = [calling(("sell", {"item": "tea", "n": 2})), calling(("sell", {"item": "tea"}), ("refuse", {"item": "x"}))]
    policy = answers(*steps, ANSWER)
    tree = await episode(policy, tools=[shop(tmp_path / "pids")], verifier=lambda task, answer: False)
    assert [len(a_try.steps) for a_try in tree.tries] == [3, 3]
    for a_try in tree.tries:
        results = [message["content"] for step in a_try.steps[1:] for message in step.request]
        assert results[:2] == ["2 sold", "3 sold"]
        assert "no x here" in results[2]
    assert [tool["function"]["name"] for tool in tree.task.tools] == ["sell", "refuse", "crash", "whoami"]
    assert await none_is_left(tmp_path / "pids") == 3  # one lists the tools


async def test_server_that_ends_midway_is_told_to_the_policy(tmp_path: Path) -> None:
    policy = answers(calling(("crash", {})), calling(("sell", {"item": "tea"})), ANSWER)
    tree = await episode(policy, tools=[shop(tmp_path / "pids")], tool_timeout_s=5.0)
    assert [step.request[0]["content"][:6] for step in tree.spans[1:]] == ["Error:", "Error:"]
    assert tree.passed
    await none_is_left(tmp_path / "pids")


@pytest.mark.parametrize("end", ["raised", "cancelled", "timed out", "interrupted"])
async def test_server_is_ended_whatever_happens(end: str, tmp_path: Path) -> None:
    is_waiting = asyncio.Event()

    async def wait() -> str:
        """Wait for ever, or ask a person."""
        is_waiting.set()
        if end == "interrupted":
            return interrupt("go on?")
        await asyncio.Event().wait()
        return ""

    calls = calling(("nope", {})) if end == "raised" else calling(("wait", {}))
    policy = answers(calls, KeyError("the policy fails") if end == "raised" else ANSWER)
    graph = build_graph(
        policy=policy,
        verifier=always,
        tools=[shop(tmp_path / "pids"), wait],
        tool_timeout_s=None,
        try_timeout_s=8.0 if end == "timed out" else None,
        max_attempts=1,
    ).compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    run = asyncio.ensure_future(graph.ainvoke(TASK, config))
    if end == "cancelled":
        await is_waiting.wait()
        run.cancel()
    [result] = await asyncio.gather(run, return_exceptions=True)
    if end == "interrupted":
        result = await graph.ainvoke(Command(resume="yes"), config)
        assert result["passed"] is True
    elif end == "timed out":
        assert result["passed"] is False
    else:
        assert isinstance(result, AgentError if end == "raised" else asyncio.CancelledError)
    await none_is_left(tmp_path / "pids")


async def test_server_that_does_not_start_is_an_error_of_the_agent() -> None:
    with pytest.raises(AgentError, match="does not start"):
        await episode(answers(ANSWER), tools=[shop("broken")])


async def test_tools_of_one_name_are_refused() -> None:
    def sell(item: str) -> str:
        """Sell an item."""
        return item

    with pytest.raises(ConfigError, match="two tools have the name 'sell'"):
        await episode(answers(ANSWER), tools=[shop(), sell])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "give one of the two"),
        ({"command": "python", "url": "http://127.0.0.1:1/mcp"}, "give one of the two"),
        ({"command": "no-such-program"}, "there is no such program"),
        ({"command": "python", "start_timeout_s": 0.0}, "start_timeout_s"),
        ({"command": ["python"]}, "command"),
    ],
)
def test_server_is_refused_when_it_is_made(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        McpServer(**given)
