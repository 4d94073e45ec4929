"""New weights onto a real vLLM server while it is answering: nothing fails, and every stamp is true."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from r3agent import OpenAIPolicy, Sampling
from r3agent.bundled import BUNDLED_DIR
from r3agent.deploy import DeployConfig, deploy, load_version, rollback
from r3agent.errors import DeployError
from r3agent.serve.vllm import VLLMProcess
from r3agent.tasks import find_tasks
from r3agent.trajectory import Generation
from tests.deploy.trained import Trained, logprobs_of
from tests.vllm.test_recording import FLOAT32_GAP, gaps

CLIENTS = 16


@pytest.fixture
def trained(tmp_path: Path) -> Trained:
    trained = Trained(tmp_path / "run", BUNDLED_DIR, "bundled")
    trained.registry.set_live("v0000")
    return trained


def served(server: VLLMProcess) -> set[str]:
    return {model["id"] for model in httpx.get(f"{server.base_url}/models").json()["data"]}


async def under_load(policy: OpenAIPolicy, swap: Callable[[], Any]) -> tuple[list[Generation], float]:
    """What was sampled around a swap, and the longest time without any answer, in seconds; an error fails the test."""
    prompts = [task.messages for task in find_tasks("countdown", 64, seed=1)]
    drawn: list[Generation] = []
    ended: list[float] = []
    swapped = asyncio.Event()

    async def client(number: int) -> None:
        more = 3
        while more:
            drawn.extend(await policy.sample(prompts[(number + len(drawn)) % 64]))
            ended.append(time.monotonic())
            more -= swapped.is_set()

    async def swapping() -> None:
        await asyncio.sleep(1)
        await asyncio.to_thread(swap)
        swapped.set()

    await asyncio.gather(swapping(), *(client(i) for i in range(CLIENTS)))
    ended.sort()
    return drawn, max(b - a for a, b in pairwise(ended))


def assert_stamps_are_true(trained: Trained, drawn: list[Generation]) -> None:
    """Each completion has the logprobs of the version it is stamped with."""
    by_version: dict[str | None, list[Generation]] = {}
    for generation in drawn:
        by_version.setdefault(generation.policy_version, []).append(generation)
    for version, generations in by_version.items():
        if version is None:  # marked: nobody knows
            assert {g.capability for g in generations} == {"eval-only"}
            continue
        model = trained.load(version)
        for generation in [*generations[:5], *generations[-5:]]:
            assert max(gaps(generation, model)) < FLOAT32_GAP, version


async def test_an_adapter_goes_live_under_load(vllm: VLLMProcess, trained: Trained) -> None:
    where = {"registry": trained.registry, "base_url": vllm.base_url}
    for seed in (1, 2):
        trained.publish("lora", seed=seed)
    deploy("v0001", **where)
    sampling = Sampling(max_tokens=24)
    async with OpenAIPolicy(vllm.base_url, "bundled@live", registry=trained.registry, sampling=sampling) as policy:
        drawn, gap_s = await under_load(policy, lambda: deploy("v0002", config=DeployConfig(keep=1), **where))
    print(f"lora: {len(drawn)} requests, 0 failed, the longest gap between answers {gap_s * 1e3:.0f} ms")
    assert {g.policy_version for g in drawn} == {"v0001", "v0002"}
    assert_stamps_are_true(trained, drawn)
    assert served(vllm) == {"bundled", "bundled@v0002"}
    assert load_version("v0001", **where).canary is not None
    assert served(vllm) == {"bundled", "bundled@v0001", "bundled@v0002"}
    rollback(**where)
    rollback(to="v0000", **where)
    for name in served(vllm) - {"bundled"}:
        httpx.post(f"{vllm.base_url}/unload_lora_adapter", json={"lora_name": name})


async def test_full_weights_are_reloaded_under_load(vllm: VLLMProcess, trained: Trained) -> None:
    where = {"registry": trained.registry, "base_url": vllm.base_url}
    trained.publish("full", seed=1)
    sampling = Sampling(max_tokens=24)
    async with OpenAIPolicy(vllm.base_url, "bundled@live", registry=trained.registry, sampling=sampling) as policy:
        drawn, gap_s = await under_load(policy, lambda: deploy("v0001", **where))
    unknown = sum(g.policy_version is None for g in drawn)
    print(
        f"reload: {len(drawn)} requests, 0 failed, {unknown} of unknown version, the longest gap between answers "
        f"{gap_s * 1e3:.0f} ms"
    )
    assert {g.policy_version for g in drawn} >= {"v0000", "v0001"}
    assert unknown <= CLIENTS
    assert_stamps_are_true(trained, drawn)
    rollback(**where)
    assert trained.registry.live == "v0000"


def test_weights_that_are_not_the_cards_do_not_go_live(vllm: VLLMProcess, trained: Trained) -> None:
    where = {"registry": trained.registry, "base_url": vllm.base_url}
    wrong_adapter = trained.publish("lora", seed=3, card_seed=4)
    with pytest.raises(DeployError, match=r"in part, or are others.*v0000 stays live"):
        deploy(wrong_adapter, **where)
    wrong_weights = trained.publish("full", seed=5, card_seed=6)
    with pytest.raises(DeployError, match=r"in part, or are others.*again; v0000 stays live"):
        deploy(wrong_weights, **where)
    assert served(vllm) == {"bundled"}
    base = trained.load()
    answer = httpx.post(
        f"{vllm.base_url}/completions",
        json={"model": "bundled", "prompt": [4, 16, 30], "max_tokens": 1, "prompt_logprobs": 0},
    ).json()
    scored = answer["choices"][0]["prompt_logprobs"][2]["30"]["logprob"]
    assert scored == pytest.approx(logprobs_of(base, [4, 16, 30])[2], abs=FLOAT32_GAP)
