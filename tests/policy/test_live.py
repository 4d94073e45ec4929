"""The version that answers, when it changes while requests are under way."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from r3agent import Task
from r3agent.episodes.assembly import assemble
from r3agent.episodes.collect import collect
from r3agent.episodes.run_episode import run_episode
from r3agent.errors import ConfigError
from r3agent.policy import OpenAIPolicy
from r3agent.records.summary import summarise
from r3agent.store.registry import Registry
from r3agent.store.trajectories import load
from r3agent.testing import ScriptedEndpoint
from tests.support.registries import add, go_live

MESSAGES = [{"role": "user", "content": "hello"}]


async def test_each_request_asks_for_what_is_live_then(registry: Registry, endpoint: ScriptedEndpoint) -> None:
    endpoint.adapters = ["tiny@v0001"]
    async with OpenAIPolicy(endpoint.url, "tiny@live", registry=registry) as policy:
        [before] = await policy.sample(MESSAGES)
        go_live(registry, "v0001")
        [after] = await policy.sample(MESSAGES)
    assert (before.model, before.policy_version) == ("tiny", "v0000")
    assert (after.model, after.policy_version) == ("tiny@v0001", "v0001")


@pytest.mark.parametrize(("model", "kind"), [("tiny@live", "lora"), ("tiny@live", "full"), ("tiny", "full")])
async def test_collection_resumes_what_the_live_version_answered(
    model: str, kind: str, registry: Registry, endpoint: ScriptedEndpoint, tmp_path: Path
) -> None:
    add(registry, "v0001", kind)
    endpoint.adapters = ["tiny@v0001"]

    async def gather(live: str) -> tuple[int, int]:
        registry.set_live(live)
        if kind == "full":
            endpoint.weight_version = live
        async with OpenAIPolicy(endpoint.url, model, registry=registry) as policy:
            tasks = [Task(id=str(i), messages=MESSAGES) for i in range(4)]
            summary = await collect(tasks, policy=policy, verifier=lambda *_: True, out=tmp_path / "episodes")
        return summary.resumed, summary.episodes

    assert [await gather(live) for live in ("v0000", "v0000", "v0001", "v0000", "v0001")] == [
        (0, 4),
        (4, 4),
        (0, 4),
        (4, 4),
        (4, 4),
    ]
    answered = [t.policy_versions for t in load(tmp_path / "episodes")]
    assert sorted(answered) == [("v0000",)] * 4 + [("v0001",)] * 4


async def test_collection_redraws_what_another_version_answered(
    registry: Registry, endpoint: ScriptedEndpoint, tmp_path: Path
) -> None:
    endpoint.adapters = ["tiny@v0001"]
    tasks = [Task(id=str(i), messages=MESSAGES) for i in range(2)]

    async def gather(verifier: Any) -> int:
        async with OpenAIPolicy(endpoint.url, "tiny@live", registry=registry) as policy:
            out = tmp_path / "episodes"
            return (await collect(tasks, policy=policy, verifier=verifier, out=out, concurrency=1)).resumed

    await gather(lambda task, answer: go_live(registry, "v0001") is None)  # after the first episode
    registry.set_live("v0000")
    assert [await gather(lambda task, answer: True) for _ in range(2)] == [1, 2]


async def test_requests_follow_the_live_version_to_another_server(
    registry: Registry, endpoint: ScriptedEndpoint
) -> None:
    with ScriptedEndpoint("green", model="tiny") as green:
        async with OpenAIPolicy(endpoint.url, "tiny@live", registry=registry) as policy:
            registry.set_live("v0000", base_url=green.url)
            [generation] = await policy.sample(MESSAGES)
    assert generation.text == "green"
    assert endpoint.received == []


async def test_a_server_that_is_replaced_is_not_waited_for(registry: Registry, endpoint: ScriptedEndpoint) -> None:
    with ScriptedEndpoint("green", model="tiny") as green:
        with ScriptedEndpoint("blue", model="tiny") as blue:
            policy = OpenAIPolicy(blue.url, "tiny@live", registry=registry)
            await policy.sample(MESSAGES)
        waiting = asyncio.create_task(policy.sample(MESSAGES))  # blue is gone, and has answered before
        await asyncio.sleep(0.05)
        registry.set_live("v0000", base_url=green.url)
        [generation] = await waiting
        await policy.aclose()
    assert generation.text == "green"


async def episode(endpoint: ScriptedEndpoint, registry: Registry, verifier: Any) -> Any:
    async with OpenAIPolicy(endpoint.url, "tiny@live", registry=registry) as policy:
        nodes = assemble(policy=policy, verifier=verifier)
        return (await run_episode(nodes, Task(messages=tuple(MESSAGES)))).episode


async def test_an_episode_that_began_with_the_base_keeps_it(registry: Registry, endpoint: ScriptedEndpoint) -> None:
    endpoint.adapters = ["tiny@v0001"]
    trajectory = await episode(endpoint, registry, lambda task, answer: bool(go_live(registry, "v0001")))
    assert trajectory.policy_versions == ("v0000",)


@pytest.mark.parametrize("stays_loaded", [True, False])
async def test_an_episode_keeps_its_version_while_that_is_served(
    registry: Registry, endpoint: ScriptedEndpoint, stays_loaded: bool
) -> None:
    endpoint.adapters = ["tiny@v0001", "tiny@v0002"]
    go_live(registry, "v0001")

    def deploys(task: Task, answer: object) -> bool:
        go_live(registry, "v0002")
        if not stays_loaded:
            endpoint.adapters = ["tiny@v0002"]
        return False

    trajectory = await episode(endpoint, registry, deploys)
    versions = [span.policy_version for span in trajectory.spans]
    assert versions == (["v0001", "v0001", "v0001"] if stays_loaded else ["v0001", "v0002", "v0002"])
    assert trajectory.policy_versions == tuple(dict.fromkeys(versions))
    assert summarise([trajectory]).mixed_versions == (0 if stays_loaded else 1)


@pytest.mark.parametrize(
    ("model", "live", "says"),
    [
        ("other@live", "v0000", "is a run of 'tiny'; ask for tiny@live"),
        ("tiny@live", None, "nothing is live"),
    ],
)
def test_a_name_that_cannot_be_resolved(tmp_path: Path, model: str, live: str | None, says: str) -> None:
    registry = Registry(tmp_path)
    registry.add_base("tiny", "org/tiny")
    if live:
        registry.set_live(live)
    with pytest.raises(ConfigError, match=says):
        OpenAIPolicy("http://127.0.0.1:9/v1", model, registry=tmp_path)


def test_live_before_the_first_stage_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"r3agent collect --run .* makes the base model live, or ask for tiny,"):
        OpenAIPolicy("http://127.0.0.1:9/v1", "tiny@live", registry=tmp_path)


def test_live_needs_a_run() -> None:
    with pytest.raises(ConfigError, match="pass registry=RUN_DIR"):
        OpenAIPolicy("http://127.0.0.1:9/v1", "tiny@live")
