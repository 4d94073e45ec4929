"""MCP servers at a URL, which all tries share: each has a session of its own."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from r3agent import Task, build_graph, collect, load
from r3agent._util.address import listen
from r3agent._util.wait import wait_until
from r3agent.episodes.agents.mcp import McpServer
from r3agent.errors import AgentError
from tests.episodes.agents.scripts import ANSWER, TASK, always, answers, calling, episode

SERVER = Path(__file__).with_name("shop_server.py")
KEY = "open-sesame"


def never(task: Task, answer: str) -> bool:
    return False


def is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


@pytest.fixture
def url() -> Iterator[str]:
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(SERVER), "http", str(port)])
    try:
        assert wait_until(lambda: is_open(port), timeout_s=60)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.kill()
        process.wait()


def results(tree: Any) -> list[list[str]]:
    return [[m["content"] for step in a_try.steps[1:] for m in step.request] for a_try in tree.tries]


async def test_each_try_has_a_session_of_a_shared_server(url: str) -> None:
    policy = answers(calling(("sell", {"item": "tea"}), ("whoami", {})), calling(("whoami", {})), ANSWER)
    server = McpServer(url=url, headers={"X-Key": KEY})
    tree = await episode(policy, tools=[server], verifier=never)
    (first, one, again), (second, other, _) = results(tree)
    assert (first, second) == ("1 sold", "2 sold")  # the server's own state
    assert one.startswith(f"{KEY} ")
    assert one == again != other
    assert KEY not in str(server.identity) + repr(server)


async def test_server_that_ends_midway_is_told_to_the_policy(url: str) -> None:
    policy = answers(calling(("crash", {})), calling(("sell", {"item": "tea"})), ANSWER)
    tree = await episode(policy, tools=[McpServer(url=url)], tool_timeout_s=3.0, max_attempts=1)
    assert [text[:6] for text in results(tree)[0]] == ["Error:", "Error:"]
    assert tree.passed


async def test_server_that_is_away_is_an_error_of_the_agent() -> None:
    with pytest.raises(AgentError, match=r"McpServer\('http://127.0.0.1:1/mcp'\) does not start: ConnectError"):
        await episode(answers(ANSWER), tools=[McpServer(url="http://127.0.0.1:1/mcp", start_timeout_s=20)])


async def test_try_that_is_cancelled_leaves_no_session(url: str) -> None:
    is_waiting = asyncio.Event()

    async def wait() -> str:
        """Wait for ever."""
        is_waiting.set()
        await asyncio.Event().wait()
        return ""

    tools = [McpServer(url=url), wait]
    graph = build_graph(
        policy=answers(calling(("wait", {})), ANSWER), verifier=always, tools=tools, tool_timeout_s=None
    )
    run = asyncio.ensure_future(graph.compile().ainvoke(TASK))
    await is_waiting.wait()
    run.cancel()
    [ended] = await asyncio.gather(run, return_exceptions=True)
    assert isinstance(ended, asyncio.CancelledError)


async def test_collection_shares_the_server(url: str, tmp_path: Path) -> None:
    tasks = [{**TASK["task"], "id": f"{n}"} for n in range(20)]
    policy = answers(calling(("sell", {"item": "tea"})), ANSWER)
    await collect(tasks, policy=policy, verifier=always, out=tmp_path, tools=[McpServer(url=url)], max_attempts=1)
    sold = {results(tree)[0][0] for tree in load(tmp_path)}
    assert sold == {f"{n} sold" for n in range(1, 21)}
