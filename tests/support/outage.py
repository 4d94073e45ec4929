"""Assert what has to hold when a server dies in the middle of a collection and comes back."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import psutil

from r3agent import OpenAIPolicy, Sampling, collect, load
from r3agent.serve.process.process import LocalServer
from r3agent.store.shards import read
from r3agent.tasks import find_tasks
from r3agent.verifiers import find_verifier

N = 60


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


async def assert_collects_through_an_outage(server: Callable[[int, Path], LocalServer], tmp_path: Path) -> None:
    """Kill the server of a collection, start another, and compare.

    Args:
        server: makes one that serves `bundled`, from a port and a log.
    """
    port, done = free_port(), 0
    a_third = asyncio.Event()

    def on_episode(n: int, total: int) -> None:
        nonlocal done
        done = n
        if n >= N // 3:
            a_third.set()

    with server(port, tmp_path / "log") as first:
        policy = OpenAIPolicy(first.base_url, "bundled", sampling=Sampling(max_tokens=24))
        collecting = asyncio.create_task(
            collect(
                find_tasks("countdown", N, seed=0),
                policy=policy,
                verifier=find_verifier("countdown"),
                out=tmp_path / "run",
                reflections=2,
                concurrency=8,
                on_episode=on_episode,
            )
        )
        await a_third.wait()
        for process in psutil.Process(first.pid).children(recursive=True):
            process.kill()
    stopped_at = done
    assert stopped_at < N
    await asyncio.sleep(1)
    assert not collecting.done()
    second = server(port, tmp_path / "again.log")
    await asyncio.to_thread(second.start)
    try:
        summary = await collecting
    finally:
        second.stop()
    await policy.aclose()
    assert (summary.episodes, summary.errors) == (N, {})
    stored = [t.trajectory_id for t in read(tmp_path / "run")]
    assert len(stored) == len(set(stored)) == len(load(tmp_path / "run")) == N
