"""Limit on the requests in flight: its growth, its retreat, and waiting that the server asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from r3agent.episodes.collect import collect
from r3agent.errors import EndpointError
from r3agent.http.slots import BEGIN, Gate, Slots
from r3agent.policy import OpenAIPolicy
from r3agent.records.trajectory import Task
from r3agent.testing import ScriptedEndpoint, rate_limited


async def answer() -> str:
    await asyncio.sleep(0.001)
    return "right"


async def keep_busy(slots: Slots, n: int, request: Callable[[], Awaitable[str]] = answer) -> list[Any]:
    return await asyncio.gather(*(slots.run(request) for _ in range(n)), return_exceptions=True)


async def test_gate_lets_in_as_many_as_its_limit() -> None:
    limit, most, done = 2, 0, 0
    gate = Gate(lambda: limit)

    async def visit() -> None:
        nonlocal most, done
        async with gate:
            most = max(most, gate.inside)
            await asyncio.sleep(0)
            done += 1

    await asyncio.gather(*(visit() for _ in range(9)))
    assert (most, done, gate.inside) == (2, 9, 0)
    async with gate, gate:
        late = [asyncio.create_task(visit()) for _ in range(3)]
        await asyncio.sleep(0)
        late[0].cancel()
        limit = 3
        gate.wake()
        await asyncio.wait(late)
    assert (done, gate.inside) == (11, 0)  # whoever was cancelled kept nobody out


async def test_slots_grow_while_they_are_used_and_not_beyond_the_maximum() -> None:
    fixed, idle, busy = Slots(100), Slots(100, adaptive=True), Slots(100, adaptive=True)
    for _ in range(20):
        await idle.run(answer)
    await keep_busy(fixed, 1000)
    await keep_busy(busy, 1000)
    assert (fixed.limit, idle.limit) == (100, BEGIN)
    assert BEGIN < busy.limit <= 100


async def test_slots_shrink_once_for_requests_that_were_in_flight_together() -> None:
    with ScriptedEndpoint("right", faults=[rate_limited(0.01)] * BEGIN) as endpoint:
        async with OpenAIPolicy(endpoint.url, "scripted", api_key="none", concurrency=64, adaptive=True) as policy:
            assert policy.room() == BEGIN
            message = {"role": "user", "content": "?"}
            together = [policy.sample([message]) for _ in range(BEGIN)]
            answers = await asyncio.gather(*together)
            assert {a.text for (a,) in answers} == {"right"}
            assert BEGIN // 4 <= policy.room() < BEGIN


async def test_slots_let_no_request_begin_while_the_server_asks_to_wait() -> None:
    with ScriptedEndpoint("right", faults=[rate_limited(1)]) as endpoint:
        async with OpenAIPolicy(endpoint.url, "scripted", api_key="none", max_tries=1) as policy:
            message = {"role": "user", "content": "?"}
            with pytest.raises(Exception, match="slow down"):
                await policy.sample([message])
            other = asyncio.create_task(policy.sample([message]))
            await asyncio.sleep(0.1)
            assert len(endpoint.received) == 1
            await other


async def test_slots_warn_of_a_long_pause(caplog: pytest.LogCaptureFixture) -> None:
    with ScriptedEndpoint("right", faults=[rate_limited(60)]) as endpoint:
        async with OpenAIPolicy(endpoint.url, "scripted", api_key="none", max_tries=1) as policy:
            with pytest.raises(EndpointError):
                await policy.sample([{"role": "user", "content": "?"}])
    [warning] = caplog.messages
    assert warning.startswith("http://127.0.0.1:")
    assert warning.endswith(": 429 slow down: no request to it begins for 60 s, as it asks")


@pytest.mark.parametrize("concurrency", [None, 100])
async def test_a_storm_of_429_loses_no_episode(tmp_path: Path, concurrency: int | None) -> None:
    tasks = [Task(id=f"t{i}", messages=({"role": "user", "content": f"{i}?"},)) for i in range(100)]
    storm = [None] * 20 + [rate_limited(0.05), None] * 40
    with ScriptedEndpoint("right", faults=storm) as endpoint:
        async with OpenAIPolicy(
            endpoint.url, "scripted", api_key="none", concurrency=600, adaptive=concurrency is None, max_tries=20
        ) as policy:
            summary = await collect(
                tasks, policy=policy, verifier=lambda task, text: True, out=tmp_path, concurrency=concurrency
            )
    assert (summary.episodes, summary.errors, len(endpoint.received)) == (100, {}, 140)
