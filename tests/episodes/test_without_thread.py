"""A collection runs the nodes without the graph, and records what the graph does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import pytest
from langgraph.config import get_stream_writer
from langgraph.graph import START, StateGraph
from langgraph.types import interrupt
from typing_extensions import TypedDict

from r3agent.episodes.assembly import assemble
from r3agent.episodes.config import EpisodeContext
from r3agent.episodes.graph import build_graph
from r3agent.episodes.run_episode import run_episode
from r3agent.policy import Sampling
from r3agent.records.generation import Verdict
from r3agent.records.trajectory import Generation, Message, Task, Trajectory
from r3agent.testing import ScriptedPolicy
from r3agent.verifiers import PENDING, Verifier
from r3agent.verifiers.human import person
from r3agent.verifiers.text import exact
from tests.episodes.episodes import INPUT, TASK, right

SAMPLING = Sampling(temperature=0.7, seed=3)


def scored(task: Task, answer: str) -> Verdict:
    return Verdict(passed=answer == "right", score=0.5, feedback=f"not {answer}")


def pending(task: Task, answer: str) -> Any:
    return PENDING if answer == "Wrong" else answer == "right"


def a_policy() -> ScriptedPolicy:
    replies = cycle(["wrong", "wrong", "right", "Wrong", "wrong"])

    def retry(messages: Sequence[Message]) -> str:
        return next(replies)

    return ScriptedPolicy({"attempt": "wrong", "reflect": "hm", "retry": retry, "blind_retry": "wrong"})


def shape(trajectory: Trajectory) -> dict[str, Any]:
    """The record without its random ids and times."""
    places = {span.span_id: i for i, span in enumerate(trajectory.spans)}
    spans = [
        {**span.model_dump(exclude={"span_id", "parent_id", "latency_s"}), "above": places.get(str(span.parent_id))}
        for span in trajectory.spans
    ]
    return {**trajectory.model_dump(exclude={"spans", "trajectory_id", "created_at"}), "spans": spans}


@pytest.mark.parametrize("verifier", [right, scored, pending, exact])
@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"max_attempts": 3},
        {"max_attempts": 3, "reflections": 0, "blind_retries": 2},
        {"reflections": 3, "retries": 2, "blind_retries": 1},
        {"reflections": 4, "reflections_at_once": 2, "max_attempts": 3},
    ],
)
async def test_collecting_records_what_the_graph_records(verifier: Any, limits: dict[str, Any]) -> None:
    settings: Any = {"verifier": verifier, "sampling": SAMPLING, **limits}
    task = TASK.model_copy(update={"info": {"answer": "right"}})
    given, context = {"task": task.model_dump(mode="json")}, EpisodeContext(sample=2)
    output = await build_graph(policy=a_policy(), **settings).compile().ainvoke(given, context=context)
    ended = await run_episode(assemble(policy=a_policy(), **settings), task, 2)
    assert ended.cause is None
    assert shape(ended.episode) == shape(Trajectory.model_validate(output["trajectory"]))


async def test_a_budget_ends_a_collected_episode_as_it_ends_the_graph() -> None:
    settings: Any = {"verifier": right, "max_attempts": 9}
    context = EpisodeContext(max_tokens_total=30)
    output = await build_graph(policy=a_policy(), **settings).compile().ainvoke(INPUT, context=context)
    ended = await run_episode(assemble(policy=a_policy(), **settings), TASK, max_tokens_total=30)
    recorded = shape(Trajectory.model_validate(output["trajectory"]))
    assert shape(ended.episode) == recorded
    assert "max_tokens_total = 30" in str(recorded["metadata"])


class Seen(TypedDict):
    right: bool


def a_person_decides(seen: Seen) -> Seen:
    return {"right": interrupt("is it right?")}


def a_node_reports(seen: Seen) -> Seen:
    get_stream_writer()("judged")
    return {"right": True}


def judged_by(node: Callable[[Seen], Seen]) -> Verifier:
    graph: Any = StateGraph(Seen).add_node("node", node).add_edge(START, "node").compile()

    async def verifier(task: Task, answer: str) -> bool:
        get_stream_writer()("judging")
        return (await graph.ainvoke({"right": False}))["right"]

    return verifier


async def test_verifier_whose_own_graph_interrupts_is_an_error_and_no_verdict() -> None:
    ended = await run_episode(assemble(policy=a_policy(), verifier=judged_by(a_person_decides)), TASK)
    assert ended.episode.error is not None
    assert (ended.episode.error.kind, "ask a person" in ended.episode.error.message) == ("VerifierError", True)
    assert [span.verdict for span in ended.episode.spans] == [None]


async def test_verifier_writes_to_streams_in_a_collection_as_in_the_graph() -> None:
    ended = await run_episode(assemble(policy=a_policy(), verifier=judged_by(a_node_reports)), TASK)
    assert (ended.episode.error, ended.episode.passed) == (None, True)


async def test_shipped_verifier_that_asks_a_person_is_an_error_of_its_episode() -> None:
    ended = await run_episode(assemble(policy=a_policy(), verifier=person), TASK)
    assert "the verifier interrupted the graph" in str(ended.cause)


class Meddling(ScriptedPolicy):
    """Policy that changes the messages that it gets."""

    async def sample(self, messages: Sequence[Message], **given: Any) -> list[Generation]:  # pyright: ignore
        for message in messages:
            message["content"] += " (changed)"
        return await super().sample(messages, **given)


async def test_a_policy_that_changes_its_messages_changes_no_record() -> None:
    task = TASK.fresh()
    policy = Meddling({"attempt": "wrong", "reflect": "hm", "retry": "right"})
    ended = await run_episode(assemble(policy=policy, verifier=right), task)
    plain = await run_episode(assemble(policy=a_policy(), verifier=lambda task, answer: answer != "wrong"), TASK)
    assert task == TASK
    assert [span.request for span in ended.episode.spans][:2] == [span.request for span in plain.episode.spans][:2]
    assert all("(changed) (changed)" not in str(call.messages) for call in policy.calls)
