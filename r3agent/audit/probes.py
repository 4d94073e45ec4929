"""Judging of answers in child processes.

A verifier that hangs, even inside a regular expression, is killed and reported, and so is one that ends its process.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

from r3agent._util.aio import gather_all
from r3agent.errors import ConfigError
from r3agent.records.trajectory import Message, Task
from r3agent.verifiers.worker import StartError, Worker

MAX_HANGS = 5
"""Number of hangs after which the rest is not judged, since more would take hours and tell nothing new."""
CLOSE_EVERY_S = 0.1


class Probe(NamedTuple):
    """Answer to judge."""

    task: Task
    message: Message


class ProbeResult(NamedTuple):
    """Verdict on a probe, or the reason that there is none."""

    passed: bool | None = None
    score: float | None = None
    seconds: float = 0.0
    error: str = ""
    hung: bool = False


async def judge_probes(
    probes: Sequence[Probe],
    *,
    verifier: str,
    params: Mapping[str, Any],
    processes: int,
    timeout_s: float,
    progress: Callable[[int, int], None] | None = None,
) -> list[ProbeResult | None]:
    """Return the result of each probe; `None` for those not judged after too many hangs.

    Raises:
        ConfigError: the verifier does not start in one of its processes.
    """
    settings = (verifier, json.dumps(dict(params), default=str))
    worker = Worker(
        "r3agent.audit.child",
        setup=("load", *settings),
        max_processes=processes,
        is_trusted=True,
        name="the verifier's process",
    )
    done = hangs = 0

    def judge_one(probe: Probe) -> ProbeResult | None:
        nonlocal hangs
        if hangs >= MAX_HANGS:
            return None
        try:
            task = probe.task.model_dump(mode="json")
            return ProbeResult(**worker("judge_probe", *settings, task, probe.message, wall_s=timeout_s))
        except TimeoutError:
            hangs += 1
            return ProbeResult(seconds=timeout_s, hung=True)
        except StartError:
            raise
        except RuntimeError as error:
            return ProbeResult(error=str(error))

    async def in_thread(probe: Probe) -> ProbeResult | None:
        nonlocal done
        calls.append(call := threads.submit(judge_one, probe))
        result = await asyncio.wrap_future(call)
        done += result is not None
        if progress and result is not None:
            progress(done, len(probes))
        return result

    calls: list[Future[Any]] = []
    threads = ThreadPoolExecutor(processes)
    try:
        calls.append(start := threads.submit(worker.start))
        await asyncio.wrap_future(start)
        return await gather_all(in_thread(probe) for probe in probes)
    except StartError as error:
        raise ConfigError(f"verifier {verifier!r}: {error}") from error
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        worker.close()
        while wait(calls, CLOSE_EVERY_S).not_done:  # a thread may have been about to call
            worker.close()
        threads.shutdown()
