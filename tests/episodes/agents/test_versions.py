"""Version of an agent's steps, when a deploy comes while its try is under way."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from r3agent import OpenAIPolicy, build_graph
from r3agent.records.trajectory import Span
from r3agent.store.registry import Registry
from r3agent.testing import ScriptedEndpoint
from tests.episodes.agents.endpoints import TASK, trajectory
from tests.support.registries import add, go_live, tiny_registry


def merges(registry: Registry, endpoint: ScriptedEndpoint) -> None:
    """Reload the first adapter in place, as a server does that takes none."""
    add(registry, "v0001", "lora")
    registry.set_live("v0000", merges_adapters=True)
    endpoint.weight_version = "v0001"


def reloads(registry: Registry, endpoint: ScriptedEndpoint) -> None:
    add(registry, "v0001", "full")
    endpoint.weight_version = "v0001"


def registers(registry: Registry, endpoint: ScriptedEndpoint) -> None:
    """Add full weights that are not deployed."""
    add(registry, "v0001", "full")
    endpoint.weight_version = "default"


def loads(registry: Registry, endpoint: ScriptedEndpoint) -> None:
    """Load an adapter beside the base model."""
    endpoint.adapters.append("tiny@v0001")
    go_live(registry, "v0001")


@pytest.mark.parametrize("model", ["tiny", "tiny@live"])
@pytest.mark.parametrize(
    ("deploys", "stamp"),
    [(merges, None), (reloads, None), (registers, "v0000"), (loads, "v0000")],
)
async def test_a_try_keeps_its_version_if_the_name_does(
    deploys: Callable[[Registry, ScriptedEndpoint], None], stamp: str | None, model: str, tmp_path: Path
) -> None:
    registry = tiny_registry(tmp_path)
    with ScriptedEndpoint("a ball", model="tiny") as endpoint:
        spans = await steps(endpoint, model, registry, between=[lambda: deploys(registry, endpoint)])
    assert [span.policy_version for span in spans] == [stamp, stamp]
    assert {span.capability for span in spans} == {"trainable-exact" if stamp else "eval-only"}
    assert all(stamp or "swapped while it was generated" in (span.capability_note or "") for span in spans)


@pytest.mark.parametrize("model", ["tiny", "tiny@live"])
async def test_a_step_during_an_evaluation_is_of_no_known_version(model: str, tmp_path: Path) -> None:
    """Other weights replace the live ones for its time, and have gone when the try ends."""
    registry = tiny_registry(tmp_path)
    add(registry, "v0001", "full")
    swap, put_back = registry.swapped_path.touch, registry.swapped_path.unlink
    with ScriptedEndpoint("a ball", model="tiny") as endpoint:
        spans = await steps(endpoint, model, registry, between=[swap, put_back])
    assert [span.policy_version for span in spans] == ["v0000", None, "v0000"]


async def test_a_try_of_an_evaluation_keeps_its_version_until_other_weights_come(tmp_path: Path) -> None:
    registry = tiny_registry(tmp_path)
    add(registry, "v0001", "full")
    registry.swapped_path.touch()
    with ScriptedEndpoint("a ball", model="tiny") as endpoint:
        endpoint.weight_version = "v0001"
        later = registry.swapped_path.stat().st_mtime + 1
        swap_again = partial(os.utime, registry.swapped_path, (later, later))
        spans = await steps(endpoint, "tiny", registry, between=[lambda: None, swap_again])
    assert [span.policy_version for span in spans] == ["v0001", "v0001", None]


async def test_steps_on_a_server_that_forgot_its_version_are_of_none(tmp_path: Path) -> None:
    registry = tiny_registry(tmp_path)
    add(registry, "v0001", "full")
    registry.set_live("v0001")
    with ScriptedEndpoint("a ball", model="tiny") as endpoint:
        endpoint.weight_version = "default"  # it has restarted
        spans = await steps(endpoint, "tiny@live", registry, between=[lambda: None])
    assert [(span.policy_version, span.capability) for span in spans] == [(None, "eval-only")] * 2


async def steps(
    endpoint: ScriptedEndpoint, model: str, registry: Registry, *, between: Sequence[Callable[[], object]]
) -> Sequence[Span]:
    """Run an agent that calls the model, and once more after each of the things that happen in between."""

    async def agent(messages: list[Any], client: AsyncOpenAI) -> Any:
        answer = (await client.chat.completions.create(model="policy", messages=messages)).choices[0].message
        for happens in between:
            happens()
            messages = [*messages, {"role": "assistant", "content": answer.content}, *messages[:1]]
            answer = (await client.chat.completions.create(model="policy", messages=messages)).choices[0].message
        return answer

    async with OpenAIPolicy(endpoint.url, model, registry=registry) as policy:
        graph = build_graph(policy=policy, verifier=lambda *_: True, agent=agent, max_attempts=1).compile()
        return trajectory(await graph.ainvoke(TASK)).spans
