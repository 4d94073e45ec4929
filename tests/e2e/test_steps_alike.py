"""One game by the tool loop, and by a LangChain agent and a program through a gateway: the same rows and weights."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.runnables import RunnableConfig
from langchain_openai import ChatOpenAI
from safetensors.numpy import load_file

from r3agent import OpenAIPolicy, Program, Sampling, Trajectory, collect, load
from r3agent.episodes.agents.base import AgentCall, AgentEnd
from r3agent.gateway.server import Gateway
from r3agent.serve import ServerProcess
from r3agent.store.models import find_checkpoint
from r3agent.tasks import find_tasks
from r3agent.tasks.countdown_steps import board, combine
from r3agent.train import PolicyStart, TrainConfig, build_rows, train
from r3agent.verifiers import find_verifier


class ThroughGateway:
    """LangChain agent whose model asks the URL of its try, as code outside of r3agent would."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    async def run(self, call: AgentCall) -> AgentEnd:
        def play(a: int, op: str, b: int, config: RunnableConfig) -> str:
            """Replace two of the numbers by the result of an operation on them."""
            return config["configurable"]["board"].combine(a, op, b)

        play.__name__ = "combine"
        url = await asyncio.to_thread(self.gateway.open, call.episode, call.scope)
        try:
            agent = create_agent(ChatOpenAI(model="policy", base_url=url, api_key="none"), tools=[play])
            config: Any = {"configurable": {"board": call.environment}}
            await agent.ainvoke({"messages": [*call.messages]}, config)
        finally:
            await asyncio.to_thread(self.gateway.close, url)
        return AgentEnd(None)


async def play(base_url: str, out: Path, **maker: Any) -> list[Trajectory]:
    async with OpenAIPolicy(base_url, "bundled-steps") as policy:
        summary = await collect(
            find_tasks("countdown_steps", 5, seed=2),
            policy=policy,
            verifier=find_verifier("countdown_steps"),
            out=out,
            sampling=Sampling(max_tokens=12, seed=7),
            reflections=4,
            concurrency=1,
            **maker,
        )
    assert summary.errors == summary.try_errors == {}
    assert summary.capabilities.keys() == {"trainable-exact"}
    return sorted(load(out), key=lambda t: t.task.id)


def learnt(trajectories: list[Trajectory], out: Path) -> tuple[list[Any], dict[str, Any]]:
    """The rows without their ids, and the weights after training on them."""
    config = TrainConfig(recipe="paper", credit={"reflect": "retry_success", "retry": "success"}, learning_rate=1e-3)
    rows, _ = build_rows(trajectories, config=config, version="v0000")
    start = PolicyStart(name="bundled-steps", model=find_checkpoint("bundled-steps"), version="v0000")
    train(trajectories, start=start, version="v0001", out_dir=out, config=config)
    weights = load_file(out / "adapter" / "adapter_model.safetensors")
    return [(r.prompt_ids_P, r.completion_ids_T, r.sampled_T, r.logprobs_T, r.advantage) for r in rows], weights


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
def test_agents_through_a_gateway_train_the_loops_weights(tmp_path):
    node = Program(["node", str(Path(__file__).with_name("steps.mjs"))])
    with (
        ServerProcess("bundled-steps", log_path=tmp_path / "log") as server,
        Gateway(server.base_url) as gateway,
    ):
        makers = {
            "loop": {"tools": [combine], "environment": board},
            "langchain": {"agent": ThroughGateway(gateway), "environment": board},
            "node": {"agent": node},
        }
        try:
            played = {name: asyncio.run(play(server.base_url, tmp_path / name, **m)) for name, m in makers.items()}
        finally:
            node.close()
    (loop_rows, loop_weights), *others = (learnt(p, tmp_path / f"{name}-v1") for name, p in played.items())
    for rows, weights in others:
        assert [row[:3] for row in rows] == [row[:3] for row in loop_rows]
        for row, expected in zip(rows, loop_rows, strict=True):
            assert row[3] == pytest.approx(expected[3], abs=1e-4)
            assert row[4] == pytest.approx(expected[4], abs=1e-6)
        assert weights.keys() == loop_weights.keys()
        assert max(abs(weights[name] - loop_weights[name]).max() for name in weights) < 1e-4
