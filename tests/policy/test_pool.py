"""Several servers of one model, one of which dies and returns."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from r3agent.episodes.collect import collect
from r3agent.errors import AccessError, ConfigError, EndpointError
from r3agent.policy import OpenAIPolicy
from r3agent.policy.pool import PoolPolicy
from r3agent.records.trajectory import Task
from r3agent.testing import ScriptedEndpoint
from r3agent.testing.faults import Fault

TASKS = [Task(id=f"t{i}", messages=({"role": "user", "content": f"{i}?"},)) for i in range(20)]
BROKEN = Fault(500, '{"error": {"message": "worker died"}}')


def pool_of(*urls: str) -> PoolPolicy:
    given = [OpenAIPolicy(url, "scripted", api_key="none", max_tries=1, outage_s=0) for url in urls]
    return PoolPolicy(given, outage_s=0)


def question(body: dict[str, object]) -> str:
    return str(body["messages"][0]["content"])  # type: ignore[index]


async def test_an_episode_stays_on_one_of_the_servers(tmp_path: Path) -> None:
    with ScriptedEndpoint("wrong") as one, ScriptedEndpoint("wrong") as two:
        policy = pool_of(one.url, two.url)
        await collect(TASKS, policy=policy, verifier=lambda task, answer: False, out=tmp_path, reflections=2)
        await policy.aclose()
    of_one, of_two = ({question(received.body) for received in server.received} for server in (one, two))
    assert min(len(of_one), len(of_two)) >= 5
    assert not of_one & of_two


async def test_a_server_that_fails_is_taken_out_and_probed_back_in(tmp_path: Path) -> None:
    with ScriptedEndpoint("right", faults=[BROKEN] * 3) as one, ScriptedEndpoint("right") as two:
        policy = pool_of(one.url, two.url)
        given = {"policy": policy, "verifier": lambda task, answer: True, "concurrency": 1}
        summary = await collect(TASKS[:10], out=tmp_path, **given)
        assert (summary.episodes, summary.errors, policy.in_use) == (10, {}, [two.url])
        assert len(one.received) == 1
        for _ in range(3):
            for server in policy._servers:
                server.probe_at = 0  # as after PROBE_S
            await policy.sample([{"role": "user", "content": "?"}])
        assert policy.in_use == [one.url, two.url]
        await policy.aclose()


async def test_a_server_that_lacks_the_model_ends_no_collection(tmp_path: Path) -> None:
    with ScriptedEndpoint("right", model="other") as one, ScriptedEndpoint("right") as two:
        policy = pool_of(one.url, two.url)
        given = {"policy": policy, "verifier": lambda task, answer: True, "concurrency": 4}
        summary = await collect(TASKS, out=tmp_path / "one", **given)
        assert (summary.episodes, summary.errors, policy.in_use) == (20, {}, [two.url])
        await policy.aclose()
        policy = pool_of(one.url, one.url)
        with pytest.raises(AccessError, match="check the model's name"):
            await collect(TASKS, out=tmp_path / "none", **{**given, "policy": policy})
        await policy.aclose()


async def test_an_episode_moves_once_when_several_requests_fail() -> None:
    late = threading.Event()

    def refuse(_: object) -> Fault:
        late.wait()
        return Fault(401)

    with (
        ScriptedEndpoint(refuses=refuse, faults=[Fault(401)]) as one,
        ScriptedEndpoint() as two,
        ScriptedEndpoint() as three,
    ):
        policy = pool_of(one.url, two.url, three.url)
        with policy.episode() as seat:
            requests = [asyncio.create_task(seat.sample([{"role": "user", "content": "?"}])) for _ in range(2)]
            await asyncio.wait(requests, return_when=asyncio.FIRST_COMPLETED)
            with policy.episode() as other, policy.episode() as third:
                await other.sample([{"role": "user", "content": "?"}])
                await third.sample([{"role": "user", "content": "?"}])
                other.leave()  # now the third server is the least loaded
                late.set()
                await asyncio.gather(*requests)
        await policy.aclose()
    assert (len(one.received), len(two.received), len(three.received)) == (2, 3, 1)


async def test_pool_reports_that_no_server_answers() -> None:
    with ScriptedEndpoint("right", faults=[BROKEN]) as one, ScriptedEndpoint("right", faults=[BROKEN]) as two:
        policy = pool_of(one.url, two.url)
        with pytest.raises(EndpointError, match="worker died"):
            await policy.sample([{"role": "user", "content": "?"}])
        with pytest.raises(EndpointError, match=r"none of http.* answers"):
            await policy.sample([{"role": "user", "content": "?"}])
        await policy.aclose()
    with pytest.raises(ConfigError, match="all of the same model"):
        PoolPolicy([])
