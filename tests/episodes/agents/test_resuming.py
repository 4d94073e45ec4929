"""Tries that are resumed: no step is sampled again, and a person may be asked by a tool."""

from __future__ import annotations

from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt

from r3agent import Trajectory, build_graph
from tests.episodes.agents.scripts import ANSWER, TASK, Worlds, always, answers, calling


@pytest.fixture(params=["invoke", "ainvoke"])
def run(request: pytest.FixtureRequest) -> Any:
    async def runs(app: Any, *args: Any) -> Any:
        return app.invoke(*args) if request.param == "invoke" else await app.ainvoke(*args)

    return runs


THREAD: Any = {"configurable": {"thread_id": "1"}}


@pytest.mark.parametrize("has_world", [False, True])
async def test_tool_asks_a_person_and_no_step_is_sampled_again(run: Any, has_world: bool) -> None:
    looked: list[int] = []

    def look(n: int) -> int:
        """Look a number up."""
        looked.append(n)
        return n

    def put(n: int, environment: Any) -> str:
        """Put a number into the world."""
        environment.append(n)
        return f"{environment}"

    def refund(n: int) -> str:
        """Refund, if a person agrees."""
        return f"{n}: {interrupt(f'refund {n}?')}"

    worlds = Worlds()
    first = (("put", {"n": 1}), ("look", {"n": 2})) if has_world else (("look", {"n": 2}),)
    policy = answers(calling(*first), calling(("look", {"n": 3}), ("refund", {"n": 4})), ANSWER)
    given: Any = {"tools": [look, refund, put], "environment": worlds} if has_world else {"tools": [look, refund]}
    app = build_graph(policy=policy, verifier=always, **given).compile(checkpointer=InMemorySaver())
    asked = await run(app, TASK, THREAD)
    assert [question.value for question in asked["__interrupt__"]] == ["refund 4?"]
    assert (len(policy.calls), worlds.n_open) == (2, 0)
    output = await run(app, Command(resume="yes"), THREAD)
    assert len(policy.calls) == 3
    tree = Trajectory.model_validate(output["trajectory"])
    assert [message["content"] for message in tree.spans[2].request] == ["3", "4: yes"]
    assert policy.calls[2].messages == tree.prompt(tree.spans[2])
    if has_world:
        assert (worlds.made, worlds.n_open) == ([[1], [1]], 0)
    else:
        assert sorted(looked) in ([2, 3], [2, 3, 3])  # the one beside the question may not have ended


async def test_steps_that_were_answered_are_not_sampled_again_after_an_error(run: Any) -> None:
    from r3agent.errors import EndpointError

    outage: list[Any] = [EndpointError("down")]

    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    policy = answers(calling(("add", {"a": 1, "b": 3})), ANSWER)
    scripted = policy.sample

    class Failing:
        async def sample(self, messages: Any, **more: Any) -> Any:
            if outage and messages[-1]["role"] == "tool":
                raise outage.pop()
            return await scripted(messages, **more)

        async def aclose(self) -> None: ...

    app = build_graph(policy=Failing(), verifier=always, tools=[add]).compile(checkpointer=InMemorySaver())
    with pytest.raises(EndpointError, match="down"):
        await run(app, TASK, THREAD)
    output = await run(app, None, THREAD)
    assert (output["passed"], len(policy.calls)) == (True, 2)


async def test_eight_tries_at_once_end_on_a_thread(run: Any) -> None:
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    policy = answers(calling(("add", {"a": 1, "b": 3})), ANSWER)
    graph = build_graph(policy=policy, verifier=lambda task, answer: False, tools=[add], retries=8)
    output = await run(graph.compile(checkpointer=InMemorySaver()), TASK, THREAD)
    assert len(output["trajectory"]["spans"]) == 2 + 1 + 16
