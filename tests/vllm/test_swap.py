"""New weights onto a real vLLM server while it is answering: nothing fails, and every stamp is true."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from r3agent import OpenAIPolicy, Sampling, Trajectory, build_graph
from r3agent.deploy import DeployConfig, deploy, load_version, rollback
from r3agent.errors import DeployError
from r3agent.records.summary import summarise
from r3agent.records.trajectory import Generation
from r3agent.serve.process.vllm import VLLMProcess
from r3agent.store.models import BUNDLED_DIR
from r3agent.store.registry import PolicyKind
from r3agent.tasks import find_tasks
from r3agent.testing import Traffic, traffic_through
from r3agent.verifiers import find_verifier
from tests.deploy.trained import Trained, logprobs_of
from tests.vllm.test_recording import FLOAT32_GAP, gaps

CLIENTS = 16


@pytest.fixture
def trained(vllm: VLLMProcess, tmp_path: Path) -> Iterator[Trained]:
    trained = Trained(tmp_path / "run", BUNDLED_DIR, "bundled")
    trained.registry.set_live("v0000")
    yield trained
    unload_all(vllm)


def served(server: VLLMProcess) -> set[str]:
    return {model["id"] for model in httpx.get(f"{server.base_url}/models").json()["data"]}


def unload_all(server: VLLMProcess) -> None:
    for name in served(server) - {"bundled"}:
        httpx.post(f"{server.base_url}/unload_lora_adapter", json={"lora_name": name}).raise_for_status()


def live(base_url: str, trained: Trained) -> OpenAIPolicy:
    return OpenAIPolicy(base_url, "bundled@live", registry=trained.registry, sampling=Sampling(max_tokens=24))


def asking(policy: OpenAIPolicy) -> Callable[[int], Awaitable[list[Generation]]]:
    prompts = [task.messages for task in find_tasks("countdown", 64, seed=1)]
    return lambda number: policy.sample(prompts[number % 64])


def told(strategy: str, traffic: Traffic[list[Generation]]) -> str:
    unknown = sum(g.policy_version is None for answer in traffic.answers for g in answer)
    return (
        f"{strategy}: {len(traffic.answers)} requests answered, {unknown} of unknown version, the longest gap between "
        f"answers {traffic.gap_s * 1e3:.0f} ms, before the swap {traffic.usual_gap_s * 1e3:.0f} ms"
    )


def assert_stamps_are_true(trained: Trained, drawn: list[Generation], *, every: bool = False) -> None:
    """Each completion has the logprobs of the version it is stamped with; looked at are the first and the last."""
    by_version: dict[str | None, list[Generation]] = {}
    for generation in drawn:
        by_version.setdefault(generation.policy_version, []).append(generation)
    for version, generations in by_version.items():
        if version is None:  # marked: nobody knows
            assert {g.capability for g in generations} == {"eval-only"}
            continue
        model = trained.load(version)
        for generation in generations if every else [*generations[:5], *generations[-5:]]:
            assert max(gaps(generation, model)) < FLOAT32_GAP, version


async def test_an_adapter_goes_live_under_load(vllm: VLLMProcess, trained: Trained) -> None:
    where = {"registry": trained.registry, "base_url": vllm.base_url}
    for seed in (1, 2):
        trained.publish("lora", seed=seed)
    deploy("v0001", **where)
    async with live(vllm.base_url, trained) as policy:
        traffic = await traffic_through(
            lambda: deploy("v0002", config=DeployConfig(keep=1), **where), asking(policy), clients=CLIENTS
        )
    print(told("lora", traffic))
    drawn = [generation for answer in traffic.answers for generation in answer]
    assert {g.policy_version for g in drawn} == {"v0001", "v0002"}
    assert_stamps_are_true(trained, drawn)
    assert served(vllm) == {"bundled", "bundled@v0002"}
    assert load_version("v0001", **where).fingerprint is not None
    assert served(vllm) == {"bundled", "bundled@v0001", "bundled@v0002"}
    rollback(**where)
    rollback(to="v0000", **where)


async def test_the_base_and_three_adapters_answer_side_by_side(vllm: VLLMProcess, trained: Trained) -> None:
    for seed in (1, 2, 3):
        version, all_of_them = trained.publish("lora", seed=seed), DeployConfig(keep=3)
        load_version(version, registry=trained.registry, base_url=vllm.base_url, config=all_of_them)
    async with AsyncExitStack() as stack:
        names = ("bundled", *(f"bundled@v000{number}" for number in (1, 2, 3)))
        sampling = Sampling(max_tokens=24)
        policies = [await stack.enter_async_context(OpenAIPolicy(vllm.base_url, n, sampling=sampling)) for n in names]
        answers = await asyncio.gather(*(asking(policy)(number) for number in range(32) for policy in policies))
    drawn = [generation for answer in answers for generation in answer]
    assert len({g.policy_version for g in drawn}) == 4
    assert_stamps_are_true(trained, drawn, every=True)


async def test_full_weights_are_reloaded_under_load(vllm: VLLMProcess, trained: Trained) -> None:
    where = {"registry": trained.registry, "base_url": vllm.base_url}
    trained.publish("full", seed=1)
    async with live(vllm.base_url, trained) as policy:
        traffic = await traffic_through(lambda: deploy("v0001", **where), asking(policy), clients=CLIENTS)
    print(told("reload", traffic))
    drawn = [generation for answer in traffic.answers for generation in answer]
    assert {g.policy_version for g in drawn} >= {"v0000", "v0001"}
    assert sum(g.policy_version is None for g in drawn) <= CLIENTS
    assert_stamps_are_true(trained, drawn)
    rollback(**where)
    assert trained.registry.live == "v0000"


@pytest.mark.parametrize("kind", ["lora", "full"])
async def test_an_episode_keeps_its_version_or_says_that_it_mixes_two(
    vllm: VLLMProcess, trained: Trained, kind: PolicyKind
) -> None:
    """Adapters are served side by side, so episodes end on the one they began with; weights in place are not."""
    where = {"registry": trained.registry, "base_url": vllm.base_url}
    tasks = [task.model_dump(mode="json") for task in find_tasks("countdown", 64, seed=2)]
    trained.publish(kind, seed=1)
    async with live(vllm.base_url, trained) as policy:
        graph = build_graph(policy=policy, verifier=find_verifier("countdown"), reflections=2).compile()

        async def episode(number: int) -> Trajectory:
            state = await graph.ainvoke({"task": tasks[number % len(tasks)]})
            return Trajectory.model_validate(state["trajectory"])

        traffic = await traffic_through(lambda: deploy("v0001", **where), episode, clients=CLIENTS)
    versions = [set(t.policy_versions) for t in traffic.answers]
    assert {"v0000"} in versions
    assert {"v0001"} in versions
    mixed = [t for t in traffic.answers if len(t.policy_versions) > 1]
    print(f"{kind}: {len(traffic.answers)} episodes, {len(mixed)} of them with spans of two versions")
    assert summarise(traffic.answers).mixed_versions == len(mixed)
    if kind == "lora":
        assert mixed == []
    assert_stamps_are_true(trained, [span for t in mixed or traffic.answers for span in t.spans])
    rollback(**where)


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


def test_two_runs_share_a_server_and_no_adapter(vllm: VLLMProcess, trained: Trained, tmp_path: Path) -> None:
    keep = DeployConfig(keep=1)
    for seed in (1, 2):
        deploy(trained.publish("lora", seed=seed), config=keep, registry=trained.registry, base_url=vllm.base_url)
    other = Trained(tmp_path / "other", BUNDLED_DIR, "bundled")
    deploy(other.publish("lora", seed=3, change=1e-6), registry=other.registry, base_url=vllm.base_url)
    deploy(trained.publish("lora", seed=4), config=keep, registry=trained.registry, base_url=vllm.base_url)
    assert served(vllm) == {"bundled", "bundled@v0001", "bundled@v0003"}
    with pytest.raises(DeployError, match=rf"other weights .* from {other.registry.run_dir}/policies/v0001/adapter-"):
        load_version("v0001", registry=trained.registry, base_url=vllm.base_url)


async def test_adapters_are_merged_where_none_is_taken(without_adapters: VLLMProcess, tmp_path: Path) -> None:
    trained = Trained(tmp_path / "run", BUNDLED_DIR, "bundled")
    trained.registry.set_live("v0000")
    where = {"registry": trained.registry, "base_url": without_adapters.base_url}
    for seed in (1, 2):
        trained.publish("lora", seed=seed)
    async with live(without_adapters.base_url, trained) as policy:
        traffic = await traffic_through(lambda: deploy("v0001", **where), asking(policy), clients=CLIENTS)
        load_version("v0002", to_evaluate=True, **where)
        unknown = await asking(policy)(0)  # the server named v0001 after the request before
        evaluated = await asking(policy)(1)
    print(told("merged", traffic))
    drawn = [generation for answer in traffic.answers for generation in answer]
    assert {g.policy_version for g in drawn} >= {"v0000", "v0001"}
    assert [{g.policy_version for g in answer} for answer in (unknown, evaluated)] == [{None}, {"v0002"}]
    assert_stamps_are_true(trained, drawn + evaluated)
    rollback(to="v0000", **where)
    assert served(without_adapters) == {"bundled"}
