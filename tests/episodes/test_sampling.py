"""Sampling settings of an episode's requests: each has its own seed, and reflections are free text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, pvariance
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from r3agent.episodes.collect import collect
from r3agent.episodes.graph import build_graph
from r3agent.policy import OpenAIPolicy, Policy, Sampling
from r3agent.records.trajectory import Generation, Task
from r3agent.store.trajectories import load
from r3agent.testing import ScriptedEndpoint, ScriptedPolicy

TASKS = [Task(id=f"t{i}", messages=({"role": "user", "content": f"question {i}"},)) for i in range(60)]
FORMAT = {"response_format": {"type": "json_object"}, "tool_choice": "required", "ignore_eos": True}


def right(task: Task, answer: str) -> bool:
    return answer == "right"


class Gambler(ScriptedPolicy):
    """Right with probability 0.3, by random numbers that only the seed of the request decides on."""

    async def sample(self, messages: Sequence[dict[str, Any]], **settings: Any) -> list[Generation]:
        sampling, n = settings["sampling"], settings.get("n", 1)
        drawn = await super().sample(messages, **settings)
        draws = [random.Random(sampling.seed + i).random() for i in range(n)]
        return [
            one.model_copy(update={"text": "right" if draw < 0.3 else "wrong"})
            for one, draw in zip(drawn, draws, strict=True)
        ]


async def seeds_of(out: Path, policy: ScriptedPolicy, **settings: Any) -> list[int]:
    await collect(TASKS[:3], policy=policy, verifier=right, out=out, retries=2, blind_retries=2, **settings)
    return [call.sampling.seed for call in policy.calls if call.sampling and call.sampling.seed is not None]


async def test_collect_draws_each_task_independently(tmp_path: Path) -> None:
    async def rate(seed: int) -> float:
        out = tmp_path / str(seed)
        await collect(
            TASKS, policy=Gambler("wrong"), verifier=right, out=out, max_attempts=1, sampling=Sampling(seed=seed)
        )
        return fmean(bool(t.passed) for t in load(out))

    rates = [await rate(seed) for seed in range(40)]
    assert 0.4 < pvariance(rates) / (0.3 * 0.7 / len(TASKS)) < 2  # binomial; 60 times as much with one seed for all


async def test_collect_gives_every_request_its_own_seed(tmp_path: Path) -> None:
    sampling = Sampling(seed=1)
    seeds = await seeds_of(tmp_path / "a", ScriptedPolicy("wrong"), sampling=sampling, samples=2, reflections=3)
    assert len(seeds) == len(set(seeds)) == 3 * 2 * (1 + 1 + 3 + 1)
    assert max(seeds) < 2**31 - 1000
    again = await seeds_of(tmp_path / "b", ScriptedPolicy("wrong"), sampling=sampling, samples=2, reflections=3)
    assert set(again) == set(seeds)
    other = await seeds_of(tmp_path / "c", ScriptedPolicy("wrong"), sampling=Sampling(seed=2), samples=2, reflections=3)
    assert not {*other} & {*seeds}


async def test_collect_derives_seeds_of_the_policys_own_settings(tmp_path: Path) -> None:
    with ScriptedEndpoint("wrong") as endpoint:
        async with OpenAIPolicy(endpoint.url, endpoint.model, sampling=Sampling(seed=5)) as policy:
            await collect(TASKS[:4], policy=policy, verifier=right, out=tmp_path, max_attempts=1)
    sent = {received.body["seed"] for received in endpoint.received}
    assert len(sent) == 4
    assert {t.spans[0].sampling["seed"] for t in load(tmp_path)} == sent


@pytest.mark.parametrize("samples", [(0, 1), (0, 0)])
async def test_graph_draws_a_task_anew_in_each_episode_of_a_thread(samples: tuple[int, int]) -> None:
    policy = ScriptedPolicy("wrong")
    graph = build_graph(policy=policy, verifier=right, sampling=Sampling(seed=3)).compile(checkpointer=InMemorySaver())
    task = TASKS[0].model_dump(mode="json")
    for sample in samples:
        thread: Any = {"configurable": {"thread_id": "one"}}
        result = await graph.ainvoke({"task": task}, thread, context={"sample": sample})
        assert result["trajectory"]["sample"] == sample
    assert len({call.sampling and call.sampling.seed for call in policy.calls}) == len(policy.calls) == 6


@pytest.mark.parametrize("where", ["graph", "policy"])
async def test_graph_leaves_reflections_free_of_response_format(where: str) -> None:
    with ScriptedEndpoint("wrong") as endpoint:
        sampling = Sampling(extra=FORMAT)
        mine, graphs = (sampling, None) if where == "policy" else (None, sampling)
        async with OpenAIPolicy(endpoint.url, endpoint.model, sampling=mine) as policy:
            await ask(policy, sampling=graphs)
            tries = [received.body for received in endpoint.received]
            await ask(policy, sampling=graphs, reflect_sampling=sampling)
    assert [FORMAT.keys() & body.keys() for body in tries] == [FORMAT.keys(), {"ignore_eos"}, FORMAT.keys()]
    assert FORMAT.keys() <= endpoint.received[4].body.keys()


async def ask(policy: Policy, **settings: Any) -> None:
    graph = build_graph(policy=policy, verifier=right, **settings).compile()
    await graph.ainvoke({"task": TASKS[0].model_dump(mode="json")})
