"""Verdicts from processes of their own: a verifier that hangs, even inside a regular expression, is ended and reported,
and so is one that takes the process down."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from r3agent._util.aio import gather_all
from r3agent.errors import ConfigError
from r3agent.records.trajectory import Message, Task

MAX_HANGS = 5
"""After so many the rest is not asked: it would take hours to say the same."""
START_S = 300.0
"""For the verifier's own imports; it may load a model."""
MAX_LINE = 2**26


class Probe(NamedTuple):
    """One answer to be judged."""

    task: Task
    message: Message


class Said(NamedTuple):
    """What the verifier said of it."""

    passed: bool | None = None
    score: float | None = None
    seconds: float = 0.0
    error: str = ""
    hung: bool = False


async def judged(
    probes: Sequence[Probe],
    *,
    verifier: str,
    params: Mapping[str, Any],
    processes: int,
    timeout_s: float,
    progress: Callable[[int, int], None] | None = None,
) -> list[Said | None]:
    """What is said of each; `None` where it was not asked any more.

    Raises:
        ConfigError: the verifier does not start in a process of its own.
    """
    said: list[Said | None] = [None] * len(probes)
    queue = iter(enumerate(probes))
    done = hangs = 0

    async def work() -> None:
        nonlocal done, hangs
        process = VerifierProcess(verifier, params, timeout_s)
        try:
            for place, probe in queue:
                if hangs >= MAX_HANGS:
                    return
                said[place] = answer = await process.ask(probe)
                done, hangs = done + 1, hangs + answer.hung
                if progress:
                    progress(done, len(probes))
        finally:
            await process.aclose()

    await gather_all(work() for _ in range(min(processes, len(probes))))
    return said


class VerifierProcess:
    """One process; another takes its place when it has ended."""

    def __init__(self, verifier: str, params: Mapping[str, Any], timeout_s: float) -> None:
        self._hello = {"verifier": verifier, "params": dict(params)}
        self._timeout_s = timeout_s
        self._process: Process | None = None

    async def ask(self, probe: Probe) -> Said:
        process = self._process = self._process or await self._started()
        question = {"task": probe.task.model_dump(mode="json"), "message": probe.message}
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await _answer(process, question)
        except TimeoutError:
            await self.aclose()
            return Said(seconds=self._timeout_s, hung=True)
        if answer is None:
            code = await process.wait()
            await self.aclose()
            return Said(error=f"the verifier's process ended with {code}")
        return Said(**answer)

    async def aclose(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        if process.stdin is not None:
            process.stdin.close()
        await process.wait()

    async def _started(self) -> Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "r3agent.audit.worker"),
            stdin=PIPE,
            stdout=PIPE,
            limit=MAX_LINE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self._process = process  # so that it is ended whatever happens now
        try:
            async with asyncio.timeout(START_S):
                answer = await _answer(process, self._hello)
        except TimeoutError:
            answer = {"error": f"it has not started after {START_S:g} s"}
        if answer is None or answer:
            why = f"its process ended with {await process.wait()}" if answer is None else answer["error"]
            raise ConfigError(f"verifier {self._hello['verifier']!r} does not start in a process of its own: {why}")
        return process


async def _answer(process: Process, question: Mapping[str, Any]) -> dict[str, Any] | None:
    """`None`: the process has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(orjson.dumps(question, default=str) + b"\n")
        await process.stdin.drain()
        line = await process.stdout.readline()
    except (BrokenPipeError, ConnectionResetError):
        return None
    return orjson.loads(line) if line.endswith(b"\n") else None
