"""The version of an answer where several share one served name, and the server says which weights it has."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from r3agent.policy import OpenAIPolicy
from r3agent.policy.live import WeightVersion
from r3agent.store.registry import Registry
from r3agent.testing import ScriptedEndpoint
from tests.support.registries import add

MESSAGES = [{"role": "user", "content": "hello"}]


async def test_weights_in_place_are_stamped_by_what_the_server_says(
    registry: Registry, endpoint: ScriptedEndpoint
) -> None:
    add(registry, "v0001", "full")
    async with OpenAIPolicy(endpoint.url, "tiny", registry=registry, version="v0001") as policy:
        endpoint.weight_version = "default"
        [stated] = await policy.sample(MESSAGES)
        endpoint.weight_version = "v0000"
        [swapped] = await policy.sample(MESSAGES)
        [said] = await policy.sample(MESSAGES)
    assert stated.policy_version == "v0001"
    assert (swapped.policy_version, swapped.capability) == (None, "eval-only")
    assert "swapped while it was generated" in (swapped.capability_note or "")
    assert (said.policy_version, said.capability) == ("v0000", "trainable-exact")


async def test_a_server_that_forgot_its_version_has_unknown_weights(
    registry: Registry, endpoint: ScriptedEndpoint
) -> None:
    add(registry, "v0001", "full")
    async with OpenAIPolicy(endpoint.url, "tiny", registry=registry, version="v0001") as policy:
        endpoint.weight_version = "v0001"
        await policy.sample(MESSAGES)
        for restarted in ("default", None):
            endpoint.weight_version = restarted
            await policy.sample(MESSAGES)  # the weights before it are those of the last answer
            [after] = await policy.sample(MESSAGES)
            assert (after.policy_version, after.capability) == (None, "eval-only")
            assert "does not name its weights" in (after.capability_note or "")
        endpoint.weight_version = "v0001"
        await policy.sample(MESSAGES)
        [named] = await policy.sample(MESSAGES)
    assert named.policy_version == "v0001"


@pytest.mark.parametrize(
    ("live", "names", "stamp"),
    [
        ("v0000", "default", "v0000"),
        ("v0000", None, "v0000"),
        ("v0001", "default", None),  # the server has started after the deploy
        ("v0001", None, "v0001"),  # it never names a version
    ],
)
async def test_the_live_version_is_stamped_only_if_the_server_may_have_it(
    registry: Registry, endpoint: ScriptedEndpoint, live: str, names: str | None, stamp: str | None
) -> None:
    add(registry, "v0001", "full")
    registry.set_live(live)
    endpoint.weight_version = names
    async with OpenAIPolicy(endpoint.url, "tiny@live", registry=registry) as policy:
        [generation] = await policy.sample(MESSAGES)
    assert generation.policy_version == stamp


@pytest.mark.parametrize("model", ["tiny", "tiny@live"])
@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize(("names", "stamp"), [("v0001", None), ("default", "v0000")])
async def test_a_name_that_versions_share_since_a_request_began(
    registry: Registry, model: str, kind: str, names: str | None, stamp: str | None
) -> None:
    def deploys(body: Any, choice: int) -> str:
        if "v0001" not in registry.versions():
            add(registry, "v0001", kind)
            registry.set_live("v0000", merges_adapters=kind == "lora")
            endpoint.weight_version = names
        return "hi"

    with ScriptedEndpoint(deploys, model="tiny") as endpoint:
        async with OpenAIPolicy(endpoint.url, model, registry=registry) as policy:
            [during] = await policy.sample(MESSAGES)
            [after] = await policy.sample(MESSAGES)
            name = await policy.versioned_name()
    assert (during.policy_version, during.capability == "eval-only") == (stamp, stamp is None)
    assert after.policy_version == ("v0000" if stamp else "v0001")
    assert name == "tiny@v0000"  # what is live, until the pointer moves too


async def test_an_answer_is_not_lost_with_its_server(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server cannot be asked for its weights any more."""
    add(registry, "v0001", "full")
    with ScriptedEndpoint("hi", model="tiny") as endpoint:
        endpoint.weight_version = "v0001"
        async with OpenAIPolicy(endpoint.url, "tiny", registry=registry, max_tries=1, outage_s=0) as policy:
            await policy.sample(MESSAGES)
            monkeypatch.setattr(
                "r3agent.policy.endpoint.ApiURL.server_route", lambda *_: httpx.URL("http://127.0.0.1:9/gone")
            )
            [generation] = await policy.sample(MESSAGES)
    assert (generation.text, generation.policy_version) == ("hi", None)


async def test_a_run_that_became_unreadable_costs_the_version_only(registry: Registry) -> None:
    with ScriptedEndpoint("hi", model="tiny") as endpoint:
        async with OpenAIPolicy(endpoint.url, "tiny", registry=registry) as policy:
            [before] = await policy.sample(MESSAGES)
            add(registry, "v0001", "full")
            (registry.version_dir("v0001") / "card.json").write_text("{")
            [after] = await policy.sample(MESSAGES)
    assert (before.policy_version, after.policy_version) == ("v0000", None)


async def test_an_answer_is_not_lost_with_its_run(registry: Registry) -> None:
    def destroys(body: Any, choice: int) -> str:
        registry.live_path.write_text("{")
        return "hi"

    with ScriptedEndpoint(destroys, model="tiny") as endpoint:
        async with OpenAIPolicy(endpoint.url, "tiny@live", registry=registry) as policy:
            [generation] = await policy.sample(MESSAGES)
    assert (generation.text, generation.policy_version) == ("hi", None)


async def test_adapters_ask_nothing_of_the_weights(registry: Registry) -> None:
    with ScriptedEndpoint("hi", model="tiny") as endpoint:
        endpoint.weight_version = "v0009"  # it would be on the stamp
        async with OpenAIPolicy(endpoint.url, "tiny", registry=registry) as policy:
            [generation] = await policy.sample(MESSAGES)
    assert generation.policy_version == "v0000"


@pytest.mark.parametrize("names", [None, "v0001"])
async def test_swapped_weights_are_known_to_a_server_that_names_them(
    registry: Registry, endpoint: ScriptedEndpoint, names: str | None
) -> None:
    add(registry, "v0001", "full")
    registry.swapped_path.touch()
    endpoint.weight_version = names
    for model in ("tiny", "tiny@live"):
        async with OpenAIPolicy(endpoint.url, model, registry=registry) as policy:
            [generation] = await policy.sample(MESSAGES)
        assert generation.policy_version == names


async def test_looks_at_the_weights_are_shared_by_those_who_come_early_enough() -> None:
    began = 0
    gate = asyncio.Event()

    async def ask() -> str:
        nonlocal began
        began += 1
        mine = began
        await gate.wait()
        return str(mine)

    weights = WeightVersion(ask)
    first = asyncio.create_task(weights.now())
    await asyncio.sleep(0.01)
    later = [asyncio.create_task(weights.now()) for _ in range(5)]
    await asyncio.sleep(0.01)
    gate.set()
    assert await first == "1"
    assert set(await asyncio.gather(*later)) == {"2"}
    assert (began, weights.last) == (2, "2")


@pytest.mark.parametrize("is_first", [True, False])
async def test_a_look_at_the_weights_ends_with_its_last_caller(is_first: bool) -> None:
    asked = list[str]()
    gate = asyncio.Event()

    async def ask() -> str:
        asked.append("begun")
        try:
            await gate.wait()
        except asyncio.CancelledError:
            asked.append("cancelled")
            raise
        return "v0002"

    weights = WeightVersion(ask)
    first = asyncio.create_task(weights.now())
    await asyncio.sleep(0.01)
    later = [asyncio.create_task(weights.now()) for _ in range(2)]
    await asyncio.sleep(0.01)
    leaving = [first] if is_first else later
    leaving[0].cancel()
    await asyncio.sleep(0.01)
    assert asked == (["begun", "cancelled", "begun"] if is_first else ["begun"])
    leaving[-1].cancel()
    gate.set()
    kept = [*later] if is_first else [first]
    assert set(await asyncio.gather(*kept)) == {"v0002"}
    assert await weights.now() == "v0002"
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_closing_after_a_cancelled_call_leaves_no_request(endpoint: ScriptedEndpoint, registry: Registry) -> None:
    add(registry, "v0001", "full")
    endpoint.weight_version = "v0001"
    async with OpenAIPolicy(endpoint.url, "tiny", registry=registry) as policy:
        calls = [asyncio.create_task(policy.sample(MESSAGES)) for _ in range(3)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
