"""The whole loop on the embedded server with an agent of one's own: a function, and a LangChain agent."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from r3agent._util.aio import run_in_thread_loop
from r3agent.run.demo import GAMES
from r3agent.run.loop import run_loop
from r3agent.run.stages import Run
from r3agent.serve import ServerProcess
from r3agent.store.trajectories import load
from tests.e2e.test_loop import Silent

MODULE = '''
import json

from langchain.agents import create_agent
from langchain.tools import ToolRuntime, tool
from langchain_openai import ChatOpenAI

from r3agent import instrument

async def play(messages, client, environment, task):
    while True:
        answer = await client.chat.completions.create(model="policy", messages=messages, tools=task.tools)
        said = answer.choices[0].message
        if not said.tool_calls:
            return said
        messages.append(said.model_dump(exclude_none=True))
        for call in said.tool_calls:
            try:
                result = environment.combine(**json.loads(call.function.arguments))
            except (TypeError, ValueError) as error:  # the policy may write arguments that are none
                result = str(error)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})

@tool
def combine(a: int, op: str, b: int, runtime: ToolRuntime) -> str:
    """Replace two of the numbers by the result of an operation on them."""
    return runtime.config["configurable"]["environment"].combine(a, op, b)

chat = ChatOpenAI(model="bundled-steps", base_url="http://127.0.0.1:2/v1", api_key="none")
agent = create_agent(instrument(chat), [combine])
'''
FEW: dict[str, Any] = {
    **GAMES["steps"],
    "agent.tools": [],
    "collect.n": 8,
    "collect.reflections": 4,
    "eval.n": 6,
    "gate.split": "gate",
    "loop.rounds": 1,
    "loop.evaluate_every": 1,
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess("bundled-steps", log_path=tmp_path / "log") as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("module")
    (folder / "steps_agent.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(folder)
        yield
    chat = sys.modules.pop("steps_agent").chat
    chat.root_client.close()
    run_in_thread_loop(chat.root_async_client.close())


@pytest.mark.parametrize("name", ["play", "agent"])
def test_loop_trains_and_compares_an_agents_tries(name: str, server: ServerProcess, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", {**FEW, "policy.base_url": server.base_url, "agent.agent": f"steps_agent:{name}"})
    [round_] = run_loop(run, Silent()).rounds
    for version, served in (("v0000", "bundled-steps"), ("v0001", "bundled-steps@v0001")):
        compared = load(tmp_path / "run" / "gate" / "v0001" / version)
        assert {(s.policy_version, s.model, s.purpose) for t in compared for s in t.spans} == {(version, served, None)}
    collected = load(tmp_path / "run" / "trajectories")
    assert {s.capability for t in collected for s in t.spans} == {"trainable-exact"}
    assert any(len(a_try.steps) > 2 for t in collected for a_try in t.tries)
    assert [e.errors.rate for e in (round_.comparison.baseline, round_.comparison.candidate)] == [0, 0]
    assert (round_.comparison.candidate.policy, round_.comparison.candidate.asked) == ("v0001", None)
    final = run.evaluate("v0000", "v0001")
    assert (final.baseline.n_tasks, final.candidate.n_tasks) == (6, 6)
