"""`examples/04_in_a_service.py` as a process of its own, under load."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from r3agent import Trajectory
from r3agent.records.prompts import REFLECT, RETRY
from r3agent.run.stages import Run
from r3agent.store.registry import PolicyCard, Registry, create_version, write_card
from r3agent.testing import ScriptedEndpoint
from tests.support.outage import free_port
from tests.support.processes import answers, started

EXAMPLE = Path(__file__).parents[2] / "examples" / "04_in_a_service.py"
PUZZLE = {"numbers": [2, 3, 4], "target": 20}
SAYS = {REFLECT: "Add first.", RETRY: "<answer> (2 + 3) * 4 </answer>"}
WRONG = "<answer> 2 * 3 * 4 </answer>"


class Policy(ScriptedEndpoint):
    """First wrong, then right; waits before each retry while `gate` is closed."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        super().__init__(self._say, model="tiny", ignores=["max_tokens"])

    def _say(self, body: dict[str, Any], choice: int) -> str:
        asked = body["messages"][-1]["content"]
        if asked == RETRY:
            self.gate.wait()
        return SAYS.get(asked, WRONG)

    async def until_held(self, n: int) -> None:
        while sum(request.body["messages"][-1]["content"] == RETRY for request in self.received) < n:
            await asyncio.sleep(0.01)


@pytest.fixture
def policy() -> Iterator[Policy]:
    with Policy() as policy:
        yield policy
        policy.gate.set()


@pytest.fixture
def registry(policy: Policy, tmp_path: Path) -> Registry:
    run = Run(tmp_path / "run", {"policy.base_url": policy.url, "policy.model": "tiny"})
    run.ensure_live()
    card = PolicyCard(version="v0001", name="tiny", kind="lora", base_model="bundled", parent="v0000")
    with create_version(run.registry.version_dir("v0001")) as directory:
        write_card(directory, card)
    policy.adapters = ["tiny@v0001"]
    return run.registry


@asynccontextmanager
async def service(registry: Registry, tmp_path: Path) -> AsyncIterator[tuple[Any, httpx.AsyncClient]]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = {**os.environ, "R3AGENT_RUN": str(registry.run_dir), "PORT": str(port)}
    running = started(
        [sys.executable, EXAMPLE], healthy=f"{url}/health", env=env, cwd=tmp_path, log=tmp_path / "service.log"
    )
    with running as process:
        async with httpx.AsyncClient(base_url=url, timeout=300) as client:
            yield process, client


def ask(client: httpx.AsyncClient, n: int) -> list[asyncio.Task[httpx.Response]]:
    return [asyncio.create_task(client.post("/answer", json=PUZZLE)) for _ in range(n)]


def versions(responses: list[httpx.Response]) -> set[str | None]:
    assert {(r.status_code, r.json()["passed"]) for r in responses} == {(200, True)}
    trajectories = [Trajectory.model_validate(r.json()["trajectory"]) for r in responses]
    assert len({t.trajectory_id for t in trajectories}) == len(responses)
    return {span.policy_version for t in trajectories for span in t.spans}


async def events(response: httpx.Response) -> AsyncIterator[tuple[str, Any]]:
    """Names and data of a stream of server-sent events."""
    name = ""
    async for line in response.aiter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


async def test_many_at_once_get_the_version_that_was_live_when_they_asked(
    policy: Policy, registry: Registry, tmp_path: Path
) -> None:
    async with service(registry, tmp_path) as (_, client):
        before = ask(client, 16)
        await policy.until_held(16)
        registry.set_live("v0001")
        after = ask(client, 16)
        await policy.until_held(32)
        policy.gate.set()
        assert versions(await asyncio.gather(*before)) == {"v0000"}
        assert versions(await asyncio.gather(*after)) == {"v0001"}
        assert (await client.get("/health")).json() == {"live": "v0001", "policy": True}
        registry.set_live("v0001", base_url=f"http://127.0.0.1:{free_port()}/v1")  # where nobody is
        unhealthy = await client.get("/health")
        assert (unhealthy.status_code, unhealthy.json()["policy"]) == (503, False)


async def test_tokens_are_streamed_as_they_come_and_errors_are_told(
    policy: Policy, registry: Registry, tmp_path: Path
) -> None:
    async with service(registry, tmp_path) as (_, client):
        texts: dict[str, str] = {}
        async with client.stream("POST", "/stream", json=PUZZLE) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            async for name, data in events(response):
                if name == "done":
                    break
                assert name == "delta"
                texts[data["label"]] = texts.get(data["label"], "") + data["delta"]
                if texts.get("reflect") == SAYS[REFLECT]:  # seen while the retry is still held
                    policy.gate.set()
        assert texts == {"attempt": WRONG, "reflect": SAYS[REFLECT], "retry": SAYS[RETRY]}
        assert data == {"answer": SAYS[RETRY], "passed": True}

        policy.model = "another"  # the server does not know `tiny` any more
        refused = await client.post("/answer", json=PUZZLE)
        assert (refused.status_code, "`tiny` does not exist" in refused.json()["error"]) == (503, True)
        async with client.stream("POST", "/stream", json=PUZZLE) as response:
            assert [name async for name, _ in events(response)] == ["error"]


async def test_told_to_stop_it_finishes_what_it_has_and_takes_no_more(
    policy: Policy, registry: Registry, tmp_path: Path
) -> None:
    async with service(registry, tmp_path) as (process, client):
        under_way = ask(client, 8)
        await policy.until_held(8)
        process.send_signal(signal.SIGTERM)
        while await asyncio.to_thread(answers, str(client.base_url.join("/health"))):
            await asyncio.sleep(0.05)
        assert process.poll() is None
        policy.gate.set()
        assert versions(await asyncio.gather(*under_way)) == {"v0000"}
        assert await asyncio.to_thread(process.wait) in (0, -signal.SIGTERM)
    assert "Traceback" not in (tmp_path / "service.log").read_text()
