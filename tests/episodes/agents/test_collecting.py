"""Collections of tries of several steps: what is stored, found again, and recorded of errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from langgraph.types import interrupt

from r3agent import Task, collect, load
from r3agent.cli.inspect_view import summary_lines
from r3agent.episodes.agents.base import AgentCall, AgentEnd
from r3agent.episodes.jobs import episode_jobs
from r3agent.errors import ConfigError, EndpointError, R3Error
from r3agent.testing import ScriptedPolicy
from tests.episodes.agents.scripts import ANSWER, Worlds, answers, calling


def tasks(n: int) -> list[Task]:
    return [Task(id=f"t{i}", messages=({"role": "user", "content": f"add up to {i}"},)) for i in range(n)]


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def other(a: int, b: int) -> int:
    """Add two other numbers."""
    return a + b


other.__name__ = "add"


def never(task: Task, answer: str) -> bool:
    return False


async def run(out: Path, *, n: int = 2, policy: Any = None, **given: Any) -> Any:
    policy = policy or answers(calling(("add", {"a": 1, "b": 3})), ANSWER)
    settings = {"verifier": never, "tools": [add], "reflections": 2, **given}
    return await collect(tasks(n), policy=policy, out=out, **settings)


def test_key_of_an_episode_of_completions_is_that_of_older_stores() -> None:
    task = Task(id="t", messages=({"role": "user", "content": "2 + 2?"},))
    assert [*episode_jobs([task], policy_name="m@v0001", verifier_name="v")] == ["3525033f77f880a3"]
    limits: Any = {"max_steps": 3, "try_timeout_s": 5.0, "agent_errors": "record"}
    assert [*episode_jobs([task], policy_name="m@v0001", verifier_name="v", **limits)] == ["3525033f77f880a3"]
    keys = {
        key
        for agent in ("a", "b")
        for steps in (3, 4)
        for key in episode_jobs([task], policy_name="m@v0001", agent_name=agent, max_steps=steps)
    }
    assert len(keys) == 4


async def test_collection_stores_tries_with_their_tools_and_worlds(tmp_path: Path) -> None:
    worlds = Worlds()
    summary = await run(tmp_path, environment=worlds, agent_name="adder")
    stored = load(tmp_path)
    assert [(t.metadata["agent"], [len(a.steps) for a in t.tries]) for t in stored] == [("adder", [2, 2, 2])] * 2
    assert [t.task.tools[0]["function"]["name"] for t in stored] == ["add"] * 2
    assert (len(worlds.made), worlds.n_open) == (6, 0)
    assert (summary.tries, summary.steps_per_try, summary.groups) == (6, 2.0, 2)
    assert any("steps in a try" in line for line in summary_lines(summary))


@pytest.mark.parametrize(
    "changed", [{"tools": [other]}, {"agent_name": "b"}, {"max_steps": 8}, {"tool_timeout_s": 5.0}]
)
async def test_collection_finds_its_episodes_again(tmp_path: Path, changed: dict[str, Any]) -> None:
    await run(tmp_path)
    again = answers(calling(("add", {"a": 1, "b": 3})), ANSWER)
    assert (await run(tmp_path, policy=again)).resumed == 2
    assert again.calls == []
    summary = await run(tmp_path, policy=again, **changed)
    assert (summary.resumed, summary.outdated) == (0, 2)


class Breaks:
    """An agent that raises in the first tries of some tasks, and in one retry of each other."""

    def __init__(self, *ids: str) -> None:
        self.ids, self.n_retries = ids, 0

    async def run(self, call: AgentCall) -> AgentEnd:
        call.episode.begin(call.messages, (), ())
        generations = await call.policy.sample(call.messages)
        call.episode.add(generations, call.scope, list(call.messages), [])
        self.n_retries += call.scope.label == "retry"
        if call.task.id in self.ids or self.n_retries == 1:
            raise OSError("the disk of the agent is full")
        return AgentEnd(None)


async def test_error_of_a_try_is_recorded_and_its_siblings_go_on(tmp_path: Path) -> None:
    summary = await run(tmp_path, policy=ScriptedPolicy("x"), tools=(), agent=Breaks("t1"), concurrency=1)
    first, second = sorted(load(tmp_path), key=lambda t: t.task.id)
    assert first.error is None
    assert [(a.error and a.error.kind, a.passed) for a in first.tries] == [
        (None, False),
        ("AgentError", None),
        (None, False),
    ]
    assert second.error is not None
    assert (second.error.kind, len(second.spans)) == ("AgentError", 1)
    assert "t1" in second.error.message
    assert "the disk of the agent is full" in second.error.message
    assert (summary.try_errors, summary.errors) == ({"AgentError": 2}, {"AgentError": 1})
    assert any("AgentError" in line and "tries" in line for line in summary_lines(summary))


async def test_agent_that_always_raises_ends_the_collection(tmp_path: Path) -> None:
    ids = [task.id for task in tasks(40)]
    with pytest.raises(R3Error, match="the first 16 episodes all errored"):
        await run(tmp_path, n=40, policy=ScriptedPolicy("x"), tools=(), agent=Breaks(*ids), concurrency=4)


async def test_endpoint_that_fails_within_tries_ends_the_collection(tmp_path: Path) -> None:
    policy = answers(calling(("add", {"a": 1, "b": 3})), EndpointError("500"))
    with pytest.raises(EndpointError, match="the collection ends"):
        await run(tmp_path, n=40, policy=policy, concurrency=4)
    assert load(tmp_path) == []


async def test_tool_that_asks_a_person_is_an_error_of_its_episode(tmp_path: Path) -> None:
    def ask() -> str:
        """Ask a person."""
        return interrupt("may I?")

    with pytest.raises(R3Error, match="a collection cannot wait for an answer"):
        await run(tmp_path, n=1, policy=answers(calling(("ask", {})), ANSWER), tools=[ask])
    assert [t.error and t.error.kind for t in load(tmp_path)] == ["AgentError"]


async def test_tool_that_asks_a_person_in_a_retry_is_named_as_in_the_first_try(tmp_path: Path) -> None:
    asked: list[str] = []

    def ask() -> str:
        """Ask a person in the second try."""
        asked.append("may I?")
        return interrupt(asked[-1]) if len(asked) > 1 else "yes"

    with pytest.raises(R3Error, match="the agent or a tool interrupted the graph"):
        await run(tmp_path, n=1, policy=answers(calling(("ask", {})), ANSWER), tools=[ask], verifier=never)
    assert [t.error and t.error.kind for t in load(tmp_path)] == ["AgentError"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"environment": 3}, "should be callable"),
        ({"environment": Worlds()(tasks(1)[0])}, "one world, not a factory"),
        ({"agent": Breaks(), "tools": [add]}, "tools"),
        ({"max_steps": 0}, "max_steps"),
        ({"tool_timeout_s": 0.0}, "tool_timeout_s"),
        ({"max_result_chars": 0}, "max_result_chars"),
        ({"tools": [add, other]}, "two tools"),
    ],
)
async def test_collection_refuses_what_it_cannot_use(given: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        await run(tmp_path, **given)
