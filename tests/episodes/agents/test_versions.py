"""Version of an agent's steps, when a deploy comes while its try is under way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from r3agent import OpenAIPolicy, build_graph
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

    async def agent(messages: list[Any], client: AsyncOpenAI) -> Any:
        first = await client.chat.completions.create(model="policy", messages=messages)
        deploys(registry, endpoint)
        messages = [*messages, {"role": "assistant", "content": first.choices[0].message.content}, *messages]
        return (await client.chat.completions.create(model="policy", messages=messages)).choices[0].message

    with ScriptedEndpoint("a ball", model="tiny") as endpoint:
        async with OpenAIPolicy(endpoint.url, model, registry=registry) as policy:
            graph = build_graph(policy=policy, verifier=lambda *_: True, agent=agent, max_attempts=1).compile()
            spans = trajectory(await graph.ainvoke(TASK)).spans
    assert [span.policy_version for span in spans] == [stamp, stamp]
    assert {span.capability for span in spans} == {"trainable-exact" if stamp else "eval-only"}
    assert all(stamp or "swapped while it was generated" in (span.capability_note or "") for span in spans)
