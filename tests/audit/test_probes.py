from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from r3agent.audit.probes import Probe, ProbeResult, judge_probes
from r3agent.errors import ConfigError
from r3agent.records.trajectory import Task
from tests.audit import planted

READY = threading.Event()


class SlowTask(Task):
    """Task whose probe is about to be judged when the audit is interrupted."""

    def model_dump(self, **settings: Any) -> dict[str, Any]:
        READY.set()
        time.sleep(0.5)
        return super().model_dump(**settings)


async def judge(
    *tasks: Task, verifier: str, params: dict[str, Any] | None = None, timeout_s: float = 60
) -> list[ProbeResult | None]:
    return await judge_probes(
        [Probe(task, task.gold or {}) for task in tasks],
        verifier=f"{planted.__name__}:{verifier}",
        params=params or {},
        processes=1,
        timeout_s=timeout_s,
    )


async def test_probes_end_with_a_process_that_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the verifier's process did not start: .*no memory left for another"):
        await judge(
            planted.task(1), planted.task(2), verifier="StartsOnce", params={"marker": str(tmp_path / "started")}
        )


async def test_probes_name_a_verifier_that_does_not_start_once() -> None:
    with pytest.raises(ConfigError, match="has no 'missing'") as error:
        await judge(planted.task(1), verifier="missing")
    assert str(error.value).count("start") == 1


async def test_probes_interrupted_before_a_call_end_at_once() -> None:
    task = SlowTask.model_validate(planted.task(1).model_dump())
    READY.clear()
    judging = asyncio.ensure_future(judge(task, verifier="sleeping", timeout_s=30))
    while not READY.is_set():
        await asyncio.sleep(0.01)
    start = time.monotonic()
    judging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await judging
    assert time.monotonic() - start < 15
