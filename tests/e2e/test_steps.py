"""One game by the tool loop, a LangChain agent and a program in Node, and the demo of it."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain.agents import create_agent
from langchain_core.runnables import RunnableConfig
from langchain_openai import ChatOpenAI

from r3agent import OpenAIPolicy, Sampling, collect, instrument, load
from r3agent.cli.progress import ConsoleReporter
from r3agent.errors import ConfigError
from r3agent.gateway.server import Gateway
from r3agent.records.trajectory import Try
from r3agent.run.demo import GAMES, run_demo
from r3agent.serve import ServerProcess
from r3agent.tasks import find_tasks
from r3agent.tasks.countdown_steps import board, combine
from r3agent.verifiers import find_verifier


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("steps") / "log"
    with ServerProcess("bundled-steps", log_path=log) as server:
        yield server.base_url


async def greedy_tries(base_url: str, out: Path, **maker: Any) -> dict[str, list[Any]]:
    """The greedy tries of an agent, as what they sampled, by task; those at temperature 1 are exact to train on."""
    for temperature in (0.0, 1.0):
        async with OpenAIPolicy(base_url, "bundled-steps") as policy:
            summary = await collect(
                find_tasks("countdown_steps", 6, seed=2),
                policy=policy,
                verifier=find_verifier("countdown_steps"),
                out=out / f"{temperature}",
                sampling=Sampling(temperature=temperature, max_tokens=12),
                reflections=1,
                **maker,
            )
        assert summary.errors == summary.try_errors == {}
        assert summary.steps_per_try is not None
        assert summary.steps_per_try > 2
    assert summary.capabilities.keys() == {"trainable-exact"}

    def tokens(a_try: Try) -> Any:
        return a_try.label, a_try.passed, [(step.prompt_token_ids, step.token_ids) for step in a_try.steps]

    return {t.task.id: list(map(tokens, t.tries)) for t in load(out / "0.0")}


@pytest.fixture(scope="module")
def by_the_loop(base_url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    out = tmp_path_factory.mktemp("loop")
    tries = asyncio.run(greedy_tries(base_url, out, tools=[combine], environment=board))
    assert {passed for task in tries.values() for _, passed, _ in task} == {True, False}
    return tries


def test_langchain_agent_makes_the_tries_of_the_tool_loop(base_url, by_the_loop, tmp_path):
    def combine(a: int, op: str, b: int, config: RunnableConfig) -> str:
        """Replace two of the numbers by the result of an operation on them."""
        return config["configurable"]["environment"].combine(a, op, b)

    async def by_langchain() -> dict[str, list[Any]]:
        with httpx.Client() as http:
            async with httpx.AsyncClient() as http_async:
                clients: dict[str, Any] = {"http_client": http, "http_async_client": http_async}
                model = instrument(ChatOpenAI(model="policy", base_url=base_url, api_key="none", **clients))
                agent = create_agent(model, tools=[combine])
                return await greedy_tries(base_url, tmp_path, agent=agent, environment=board)

    assert asyncio.run(by_langchain()) == by_the_loop


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
def test_program_in_node_plays_through_a_gateway(base_url, tmp_path):
    tasks = find_tasks("countdown_steps", 3, seed=2)
    with Gateway(base_url, out=tmp_path / "store") as gateway:
        for i, task in enumerate(tasks):
            file = tmp_path / f"{i}.json"
            file.write_text(task.model_dump_json(include={"id", "messages", "tools"}))
            url = f"{gateway.url.removesuffix('/v1')}/episodes/{i}/attempt/v1"
            asked = {"R3_TASK_FILE": str(file), "OPENAI_BASE_URL": url, "OPENAI_API_KEY": "none"}
            subprocess.run(
                ["node", str(Path(__file__).with_name("steps.mjs"))],
                env={**os.environ, **asked, "OPENAI_MODEL": "bundled-steps"},
                check=True,
            )
    recorded = load(tmp_path / "store")
    assert {span.capability for t in recorded for span in t.spans} == {"trainable-exact"}
    assert [tuple(t.task.messages) for t in recorded] == [task.messages for task in tasks]
    for trajectory in recorded:
        [a_try] = trajectory.tries
        assert len(a_try.steps) >= 2
        before: list[int] = []
        for step in a_try.steps:
            assert step.prompt_token_ids is not None
            assert step.token_ids is not None
            assert list(step.prompt_token_ids[: len(before)]) == before
            before = [*step.prompt_token_ids, *step.token_ids]


def test_demo_plays_in_steps_and_refuses_another_game(tmp_path):
    few = {"collect.n": 12, "collect.reflections": 4, "eval.n": 8, "loop.rounds": 1, "loop.evaluate_every": 1}
    with ConsoleReporter() as reporter:
        summary, text = run_demo(tmp_path, 0, reporter, settings=GAMES["steps"] | few)
        with pytest.raises(ConfigError, match="has a run of countdown_steps, not of countdown"):
            run_demo(tmp_path, 0, reporter)
    assert (summary.n_tasks, summary.rounds, summary.policy_after) == (8, 1, "v0001")
    assert 2 < summary.steps_per_try < 6
    assert "Training on reflections, retries and tries that passed" in text
    collected = load(tmp_path / "trajectories")
    assert {span.capability for t in collected for span in t.spans} == {"trainable-exact"}
    assert any(len(a_try.steps) > 2 for t in collected for a_try in t.tries)
