"""An episode whose process is killed: it is taken up and finishes, and no answered request is made again."""

from __future__ import annotations

from collections import Counter
from typing import Any
from uuid import uuid4

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph

from r3agent import EndpointError, build_graph
from r3agent.episodes.state import EpisodeState
from r3agent.testing import HANG, ScriptedEndpoint, ScriptedPolicy
from tests.episodes.episodes import INPUT, labels, on_thread, right, tree
from tests.episodes.mortal import PATIENCE_S, Episode, living, run_in, wait_for
from tests.episodes.savers import Where

BRANCHES: Any = {"reflections": 3, "blind_retries": 1}
SHAPE = {"attempt": 1, "reflect": 3, "retry": 3 + 1}


class Answering:
    """Says what was asked for, and remembers every choice that it was asked for."""

    def __init__(self) -> None:
        self.answered: Counter[str] = Counter()

    def __call__(self, body: dict[str, Any], choice: int) -> str:
        said = f"{choice} after {' | '.join(message['content'] for message in body['messages'])}"
        self.answered[said] += 1
        return said


def episode(endpoint: ScriptedEndpoint, where: Where, limits: Any = BRANCHES, **more: Any) -> Episode:
    return Episode(endpoint.url, where, uuid4().hex, limits, **more)


def is_whole(output: Any, answering: Answering) -> bool:
    """Every answer was given once and stands in the one trajectory."""
    trajectory = tree(output)
    return (
        Counter(span.label for span in trajectory.spans) == SHAPE
        and Counter(span.text for span in trajectory.spans) == answering.answered
        and set(answering.answered.values()) == {1}
    )


@pytest.mark.parametrize("is_async", [True, False], ids=["ainvoke", "invoke"])
def test_killed_again_and_again_it_finishes(on_disk: Where, is_async: bool) -> None:
    answering = Answering()
    # the first attempt; the request for reflections; two of four retries; one of the two that are left
    script = [HANG, None, HANG, None, None, None, HANG, HANG, None, HANG]
    with ScriptedEndpoint(answering, faults=script) as endpoint:
        started = episode(endpoint, on_disk, is_async=is_async)
        for is_new, kept, hanging in ((True, 0, 1), (False, 0, 1), (False, 2, 2), (False, 1, 1)):
            with living(started, is_new=is_new) as process:
                wait_for(process, *["kept"] * kept)
                endpoint.wait_for_hanging(hanging, PATIENCE_S)
            endpoint.wait_for_hanging(0)
        output = run_in(started, is_new=False)
    assert is_whole(output, answering)


def test_killed_while_it_verifies_it_asks_for_no_other_attempt(on_disk: Where) -> None:
    answering = Answering()
    with ScriptedEndpoint(answering) as endpoint:
        started = episode(endpoint, on_disk, verifies=False)
        with living(started) as process:
            wait_for(process, "verifying")
        output = run_in(started, is_new=False)
    assert is_whole(output, answering)


@pytest.fixture(params=["invoke", "ainvoke"])
def run(request: pytest.FixtureRequest) -> Any:
    async def runs(app: Any, start: Any, config: Any) -> Any:
        return app.invoke(start, config) if request.param == "invoke" else await app.ainvoke(start, config)

    return runs


@pytest.mark.parametrize("is_node", [False, True])
async def test_after_an_error_of_one_request_the_others_are_not_made_again(run: Any, is_node: bool) -> None:
    replies = ["a", EndpointError("down"), "b", "c"]
    policy = ScriptedPolicy({"attempt": "wrong", "reflect": "hm", "retry": replies})
    graph = build_graph(policy=policy, verifier=right, reflections=2)
    if is_node:
        parent = StateGraph(EpisodeState)
        parent.add_node("solve", graph.compile())
        graph = parent.add_edge(START, "solve")
    app: Any = graph.compile(InMemorySaver())
    with pytest.raises(EndpointError, match="down"):
        await run(app, INPUT, on_thread())
    output = await run(app, None, on_thread())
    assert Counter(labels(output)) == {"attempt": 1, "reflect": 2, "retry": 2}
    assert {span.text for span in tree(output).spans if span.label == "retry"} == {"a", "b"}
    assert len(policy.calls) == 2 + 2 + 1


LISTENING: Any = {"stream_mode": ["custom", "values"], "subgraphs": True}


@pytest.mark.parametrize("max_concurrency", [1, 2, 3])
async def test_langgraphs_limit_of_concurrency_holds_nothing_up(max_concurrency: int) -> None:
    app = branching()
    chunks = [chunk async for chunk in app.astream(INPUT, on_thread(max_concurrency=max_concurrency), **LISTENING)]
    assert len(labels(chunks[-1][2])) == 1 + 4 + 4 + 1


@pytest.mark.parametrize("max_concurrency", [2, 3])  # with 1, LangGraph itself waits for ever
def test_nor_does_it_in_sync(max_concurrency: int) -> None:
    chunks = list(branching().stream(INPUT, on_thread(max_concurrency=max_concurrency), **LISTENING))
    assert len(labels(chunks[-1][2])) == 1 + 4 + 4 + 1


def branching() -> Any:
    graph = build_graph(policy=ScriptedPolicy("wrong"), verifier=right, reflections=4, blind_retries=1)
    return graph.compile(InMemorySaver())
