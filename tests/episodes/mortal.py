"""An episode in a process of its own, to be killed. It reports what happens in it through a pipe."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from langgraph.checkpoint.base import BaseCheckpointSaver

from r3agent import OpenAIPolicy, Task, Verifier, build_graph
from tests.episodes.episodes import INPUT, on_thread, right
from tests.episodes.savers import Where, async_saver, saver

PATIENCE_S = 120.0
"""Patience of the parent: how long it waits for what is bound to come."""

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.episodes.mortal"])  # importing LangGraph anew takes seconds


class Episode(NamedTuple):
    """Where it runs and what it needs."""

    url: str
    where: Where
    thread: str
    limits: dict[str, Any]
    is_async: bool = True
    verifies: bool = True
    """Or waits in the verifier for ever."""


def run_in(episode: Episode, verifier: Verifier = right, *, is_new: bool = True, mixins: tuple[type, ...] = ()) -> Any:
    """The episode, begun or taken up; each step is saved before the next."""
    policy = OpenAIPolicy(episode.url, "scripted")
    graph = build_graph(policy=policy, verifier=verifier, **episode.limits)
    start, config = INPUT if is_new else None, on_thread(episode.thread)

    async def run() -> Any:
        async with async_saver(episode.where, *mixins) as checkpointer, policy:
            return await graph.compile(checkpointer).ainvoke(start, config, durability="sync")

    if episode.is_async:
        return asyncio.run(run())
    with saver(episode.where, *mixins) as checkpointer:
        try:
            return graph.compile(checkpointer).invoke(start, config, durability="sync")
        finally:
            policy.close()


@contextmanager
def living(episode: Episode, *, is_new: bool = True) -> Iterator[Any]:
    """Its process, with `reports` to read from; killed at the end with SIGKILL."""
    reports, report = context.Pipe(duplex=False)
    process: Any = context.Process(target=_live, args=(episode, is_new, report))
    process.start()
    report.close()
    process.reports = reports
    try:
        yield process
    finally:
        process.kill()
        process.join()
        reports.close()


def wait_for(process: Any, *wanted: str) -> None:
    """Wait until it has reported all of `wanted`, each as often as it stands there."""
    missing = list(wanted)
    while missing:
        assert process.reports.poll(PATIENCE_S), f"no report of {missing}"
        said = process.reports.recv()
        if said in missing:
            missing.remove(said)


def _live(episode: Episode, is_new: bool, report: Connection) -> None:
    async def stuck(task: Task, answer: str) -> bool:
        report.send("verifying")
        await asyncio.Event().wait()
        return False

    verifier = right if episode.verifies else stuck
    run_in(episode, verifier, is_new=is_new, mixins=(_reporting(report),))


def _reporting(report: Connection) -> Any:
    """Reports `kept` whenever an answer is on the disk that its node has not returned yet."""

    class Reporting(BaseCheckpointSaver[Any]):
        def put_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
            super().put_writes(config, writes, task_id, task_path)
            self._tell(writes)

        async def aput_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
            await super().aput_writes(config, writes, task_id, task_path)
            self._tell(writes)

        def _tell(self, writes: Any) -> None:
            if any(channel == "__return__" for channel, _ in writes):  # what LangGraph calls the result of a task
                report.send("kept")

    return Reporting
