"""A person as the verifier: the graph stops with the answer and goes on with the verdict."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.types import Command, interrupt

from r3agent import Task, build_graph
from r3agent.episodes.state import EpisodeState
from r3agent.testing import ScriptedPolicy
from r3agent.verifiers import find_verifier
from tests.episodes.episodes import CHAIN, FAILS_ONCE, INPUT, labels, on_thread, tree
from tests.episodes.savers import Where, saver

NO: Any = {"passed": False, "feedback": "the sum is 4"}
YES: Any = {"passed": True}


def graph(script: Any = FAILS_ONCE, **limits: Any) -> Any:
    return build_graph(policy=ScriptedPolicy(script), verifier=find_verifier("person"), **limits)


@pytest.fixture(params=["invoke", "ainvoke"])
def run(request: pytest.FixtureRequest) -> Any:
    async def runs(app: Any, start: Any) -> Any:
        return app.invoke(start, on_thread()) if request.param == "invoke" else await app.ainvoke(start, on_thread())

    return runs


def asked(output: Any) -> str:
    [waiting] = output["__interrupt__"]
    assert json.loads(json.dumps(waiting.value)) == waiting.value
    return waiting.value["answer"]


async def test_the_answer_is_shown_and_the_verdict_recorded(run: Any) -> None:
    app = graph().compile(InMemorySaver())
    stopped = await run(app, INPUT)
    assert stopped["__interrupt__"][0].value == {
        "task": "t",
        "messages": [{"role": "user", "content": "2 + 2?"}],
        "answer": "wrong",
        "tool_calls": [],
    }
    assert asked(await run(app, Command(resume=NO))) == "right"
    output = await run(app, Command(resume=YES))
    assert labels(output) == CHAIN
    attempt, _, retry = [span.verdict for span in tree(output).spans]
    assert attempt is not None
    assert retry is not None
    assert (attempt.passed, attempt.score, attempt.feedback) == (False, 0, "the sum is 4")
    assert (retry.passed, retry.score, retry.feedback) == (True, 1, None)


@pytest.mark.parametrize(("said", "score"), [(True, 1), (False, 0), (0.25, 0.25), ({**NO, "score": 0.5}, 0.5)])
def test_a_verdict_may_be_short(said: Any, score: float) -> None:
    app = graph("4", max_attempts=1).compile(InMemorySaver())
    app.invoke(INPUT, on_thread())
    [span] = tree(app.invoke(Command(resume=said), on_thread())).spans
    assert span.verdict is not None
    assert span.verdict.score == score


@pytest.mark.parametrize("said", ["yes", 7, {"feedback": "no verdict"}, {"passed": True, "sure": "very"}])
def test_what_is_no_verdict_is_asked_for_again(said: Any) -> None:
    app = graph("4", max_attempts=1).compile(InMemorySaver())
    app.invoke(INPUT, on_thread())
    [again] = app.invoke(Command(resume=said), on_thread())["__interrupt__"]
    assert again.value["answer"] == "4"
    refused = again.value["refused"]
    assert refused.startswith(f"{said!r} is no verdict")
    assert refused.endswith(
        '; reply true, false, a score from 0 to 1 (1 passes) or {"passed": true, "feedback": "..."}'
    )
    assert app.invoke(Command(resume=True), on_thread())["passed"] is True


async def test_of_several_answers_one_is_asked_for_after_the_other(run: Any) -> None:
    script = {"attempt": "0", "reflect": "hm", "retry": ["1", "2", "3"]}
    policy = ScriptedPolicy(script)
    built = build_graph(policy=policy, verifier=find_verifier("person"), reflections=3)
    app = built.compile(InMemorySaver())
    shown = [asked(await run(app, INPUT))]
    for said in (False, False, True):
        shown.append(asked(await run(app, Command(resume=said))))
    output = await run(app, Command(resume=False))
    tries = [span for span in tree(output).spans if span.label != "reflect"]
    assert [span.text for span in tries] == shown
    assert [span.passed for span in tries] == [False, False, True, False]
    assert (output["answer"], len(policy.calls)) == (shown[2], 1 + 1 + 3)


async def test_an_async_verifier_may_ask_too(run: Any) -> None:
    async def asking(task: Task, answer: str) -> bool:
        return interrupt(answer) == "yes"

    script = {"attempt": "0", "reflect": "hm", "retry": ["1", "2"]}
    app = build_graph(policy=ScriptedPolicy(script), verifier=asking, reflections=2).compile(InMemorySaver())
    shown = [(await run(app, INPUT))["__interrupt__"][0].value]
    for said in ("no", "no"):
        shown.append((await run(app, Command(resume=said)))["__interrupt__"][0].value)
    output = await run(app, Command(resume="yes"))
    assert shown == [span.text for span in tree(output).spans if span.label != "reflect"]
    assert output["answer"] == shown[-1]


def test_the_person_may_take_until_another_process_is_there(on_disk: Where) -> None:
    config = on_thread(uuid4().hex)
    with saver(on_disk) as checkpointer:
        assert asked(graph().compile(checkpointer).invoke(INPUT, config)) == "wrong"
    with saver(on_disk) as checkpointer:
        app = graph({"reflect": "hm", "retry": "right"}).compile(checkpointer)
        assert asked(app.invoke(Command(resume=NO), config)) == "right"
    with saver(on_disk) as checkpointer:
        output = graph({}).compile(checkpointer).invoke(Command(resume=YES), config)
    assert (output["passed"], labels(output)) == (True, CHAIN)


async def test_inside_an_application_the_question_comes_up_to_it(run: Any) -> None:
    parent = StateGraph(EpisodeState)
    parent.add_node("solve", graph().compile())
    app = parent.add_edge(START, "solve").compile(InMemorySaver())
    assert asked(await run(app, INPUT)) == "wrong"
    assert asked(await run(app, Command(resume=NO))) == "right"
    output = await run(app, Command(resume=YES))
    assert (output["passed"], labels(output)) == (True, CHAIN)
