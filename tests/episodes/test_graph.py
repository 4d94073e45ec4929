from __future__ import annotations

import asyncio
import json
import operator
import re
import warnings
from collections import Counter
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

from r3agent.episodes.graph import build_graph
from r3agent.errors import ConfigError, EndpointError, VerifierError
from r3agent.policy import Sampling
from r3agent.records.prompts import BLIND_RETRY, REFLECT, RETRY
from r3agent.records.trajectory import Label, Span, Task, Trajectory, Verdict
from r3agent.testing import ScriptedPolicy

TASK = Task(id="t", messages=({"role": "user", "content": "2 + 2?"},), tools=({"type": "function"},))
INPUT = {"task": TASK.model_dump(mode="json")}


def right(task: Task, answer: str) -> bool:
    return answer == "right"


def run(policy: ScriptedPolicy, verifier: Any = right, **limits: Any) -> tuple[dict[str, Any], Trajectory]:
    output = build_graph(policy=policy, verifier=verifier, **limits).compile().invoke(INPUT)  # pyright: ignore
    return output, Trajectory.model_validate(output["trajectory"])


def labels(spans: tuple[Span, ...]) -> list[Label]:
    return [span.label for span in spans]


# ---- shapes ----


def test_an_answer_that_is_right_at_once_ends_the_episode() -> None:
    policy = ScriptedPolicy("right")
    output, trajectory = run(policy)
    assert (output["answer"], output["passed"]) == ("right", True)
    assert labels(trajectory.spans) == ["attempt"]
    assert trajectory.spans[0].verdict == Verdict(passed=True, score=1)
    assert len(policy.calls) == 1


def test_one_reflection_and_one_retry() -> None:
    output, trajectory = run(ScriptedPolicy({"attempt": "wrong", "reflect": "hm", "retry": "right"}))
    assert (output["answer"], output["passed"]) == ("right", True)
    attempt, reflection, retry = trajectory.spans
    assert labels(trajectory.spans) == ["attempt", "reflect", "retry"]
    assert [attempt.parent_id, reflection.parent_id, retry.parent_id] == [None, attempt.span_id, reflection.span_id]
    assert [attempt.passed, reflection.passed, retry.passed] == [False, None, True]


@pytest.mark.parametrize("max_attempts", [1, 2, 3])
def test_the_chain_ends_after_max_attempts(max_attempts: int) -> None:
    output, trajectory = run(ScriptedPolicy("wrong"), max_attempts=max_attempts)
    assert (output["answer"], output["passed"]) == ("wrong", False)
    assert labels(trajectory.spans) == ["attempt", *["reflect", "retry"] * (max_attempts - 1)]
    assert trajectory.path(trajectory.spans[-1]) == list(trajectory.spans)


def test_the_chain_ends_with_the_try_that_passes() -> None:
    replies = {"attempt": "wrong", "reflect": "hm", "retry": ["wrong", "right"]}
    _, trajectory = run(ScriptedPolicy(replies), max_attempts=9)
    assert labels(trajectory.spans) == ["attempt", "reflect", "retry", "reflect", "retry"]


def test_collection_branches() -> None:
    policy = ScriptedPolicy("wrong")
    _, trajectory = run(policy, reflections=4, retries=2, blind_retries=3)
    attempt, *rest = trajectory.spans
    reflections = trajectory.children(attempt, "reflect")
    assert Counter(labels(tuple(rest))) == {"reflect": 4, "retry": 4 * 2 + 3}
    assert [len(trajectory.children(r, "retry")) for r in reflections] == [2] * 4
    assert len(trajectory.children(attempt, "retry")) == 3
    assert [(c.asked, c.n) for c in policy.calls] == [
        ("attempt", 1),
        ("reflect", 4),  # one request: the server shares their prefill
        *[("retry", 2)] * 4,
        ("blind_retry", 3),
    ]


def test_every_failed_retry_is_a_new_frontier() -> None:
    _, trajectory = run(ScriptedPolicy("wrong"), max_attempts=3, reflections=2, blind_retries=1)
    by_depth = Counter((len(trajectory.path(s)), s.label, trajectory.is_blind(s)) for s in trajectory.spans)
    assert by_depth == {
        (1, "attempt", False): 1,
        (2, "reflect", False): 2,
        (2, "retry", True): 1,  # the control is not followed up
        (3, "retry", False): 2,
        (4, "reflect", False): 4,
        (4, "retry", True): 2,
        (5, "retry", False): 4,
    }


def test_one_right_retry_ends_the_episode_for_all() -> None:
    replies = {"attempt": "wrong", "reflect": "hm", "retry": ["wrong", "right", "wrong"]}
    output, trajectory = run(ScriptedPolicy(replies), max_attempts=3, reflections=3)
    assert output["answer"] == "right"
    assert len(trajectory.spans) == 1 + 3 + 3


def test_a_control_that_passes_ends_nothing() -> None:
    replies = {"attempt": "wrong", "reflect": "hm", "retry": ["wrong", "right"], "blind_retry": "right"}
    _, trajectory = run(ScriptedPolicy(replies), max_attempts=3, blind_retries=1)
    assert Counter(labels(trajectory.spans)) == {"attempt": 1, "reflect": 2, "retry": 2 + 2}


def test_without_reflections_the_retries_are_blind() -> None:
    policy = ScriptedPolicy({"attempt": "wrong", "blind_retry": ["wrong", "right"]})
    output, trajectory = run(policy, max_attempts=4, reflections=0, blind_retries=1)
    assert output["passed"] is True
    assert labels(trajectory.spans) == ["attempt", "retry", "retry"]
    assert [trajectory.is_blind(s) for s in trajectory.spans] == [False, True, True]


# ---- what is asked ----


def test_attempt_request_and_reflection_stay_in_the_conversation() -> None:
    policy = ScriptedPolicy({"attempt": "wrong", "reflect": "hm", "retry": "right", "blind_retry": "wrong"})
    run(policy, blind_retries=1)
    opening = [{"role": "user", "content": "2 + 2?"}]
    failed = [*opening, {"role": "assistant", "content": "wrong"}]
    reflected = [*failed, {"role": "user", "content": REFLECT}]
    assert [c.messages for c in policy.calls] == [
        opening,
        reflected,
        [*reflected, {"role": "assistant", "content": "hm"}, {"role": "user", "content": RETRY}],
        [*failed, {"role": "user", "content": BLIND_RETRY}],
    ]


def test_what_is_asked_is_what_the_record_says() -> None:
    policy = ScriptedPolicy("wrong")
    _, trajectory = run(policy, max_attempts=3)
    assert [c.messages for c in policy.calls] == [trajectory.prompt(s) for s in trajectory.spans]


def test_tools_are_offered_to_tries_and_not_to_reflections() -> None:
    policy = ScriptedPolicy("wrong")
    run(policy)
    assert [bool(c.tools) for c in policy.calls] == [True, False, True]


def test_prompts_and_sampling_are_arguments() -> None:
    tries, reflects = Sampling(temperature=0.2), Sampling(temperature=0.9)
    policy = ScriptedPolicy("wrong")
    run(
        policy,
        blind_retries=1,
        reflect_prompt="why?",
        retry_prompt="again",
        blind_retry_prompt="once more",
        sampling=tries,
        reflect_sampling=reflects,
    )
    assert [c.messages[-1]["content"] for c in policy.calls] == ["2 + 2?", "why?", "again", "once more"]
    assert [c.sampling for c in policy.calls] == [tries, reflects, tries, tries]


def test_reflections_are_sampled_like_tries_unless_told_otherwise() -> None:
    policy, sampling = ScriptedPolicy("wrong"), Sampling(temperature=0.2)
    run(policy, sampling=sampling)
    assert [c.sampling for c in policy.calls] == [sampling] * 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_attempts": 0}, "max_attempts = 0: .* greater than or equal to 1; change it"),
        ({"reflections": -1}, "reflections = -1: .* greater than or equal to 0"),
        ({"retries": 0}, "retries = 0: .* greater than or equal to 1; change it"),
        ({"blind_retries": -1}, "blind_retries = -1: .* greater than or equal to 0"),
        ({"reflections": 0}, "nothing would retry, with max_attempts = 2; pass reflections=1"),
        ({"max_attempts": "3"}, "max_attempts = '3': .* valid integer"),
        ({"retries": None}, "retries = None: .* valid integer"),
        ({"blind_retries": True}, "blind_retries = True: .* valid integer"),
        ({"reflections": 1.0}, "reflections = 1.0: .* valid integer"),
        ({"sampling": {"top_p": 1}}, r"sampling = {'top_p': 1}: must be a Sampling, such as Sampling\(temperature"),
        ({"verifier": "exact"}, r"verifier = 'exact': .*r3agent.verifiers.find_verifier\('exact'\)"),
        ({"verifier": None}, r"verifier = None: .*find_verifier\(name\)"),
        (
            {"policy": "gpt-4"},
            r"policy = 'gpt-4': it has no sample.*OpenAIPolicy\(base_url, 'gpt-4'\).* r3agent\.Policy$",
        ),
        ({"policy": "gpt-4", "stream": True}, "policy = 'gpt-4': it has no sample"),
        ({"policy": object()}, r"policy = <object.*OpenAIPolicy\(base_url, model\)"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(wrong: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_graph(**{"policy": ScriptedPolicy("x"), "verifier": right, **wrong})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, 'the input has no "task"'),
        ({"messages": [{"role": "user", "content": "hi"}]}, 'the input has no "task"'),
        ({"task": "hi"}, "task = 'hi': .* valid dictionary"),
        ({"task": {"prompt": "x"}}, "task.messages: Field required; unknown key 'task.prompt'; known are id, messages"),
        ({"task": {"messages": "hi"}}, "task.messages = 'hi': Input should be"),
    ],
)
async def test_an_input_without_a_task_is_refused_with_one_that_works(given: Any, message: str) -> None:
    policy = ScriptedPolicy("right")
    graph = build_graph(policy=policy, verifier=right).compile()
    for run in (graph.ainvoke(given), asyncio.to_thread(graph.invoke, given)):
        with pytest.raises(ConfigError, match=message) as refused:
            await run
        assert policy.calls == []
    shown = re.search(r'{"task".*}', str(refused.value))
    assert shown is not None
    assert graph.invoke(json.loads(shown.group()))["answer"] == "right"


# ---- in LangGraph ----


def test_the_drawing_is_the_four_nodes() -> None:
    drawn = build_graph(policy=ScriptedPolicy("x"), verifier=right).compile().get_graph()
    assert set(drawn.nodes) == {START, "attempt", "verify", "reflect", "retry", END}
    assert {(e.source, e.target, e.conditional) for e in drawn.edges} == {
        (START, "attempt", False),
        ("attempt", "verify", False),
        ("verify", "reflect", True),
        ("verify", "retry", True),
        ("verify", END, True),
        ("reflect", "retry", False),
        ("retry", "verify", False),
    }


async def test_invoke_and_ainvoke_give_the_same() -> None:
    graph = build_graph(policy=ScriptedPolicy("wrong"), verifier=right, reflections=2).compile()
    outputs = [await graph.ainvoke(INPUT), await asyncio.to_thread(graph.invoke, INPUT), graph.invoke(INPUT)]
    shapes = [[(s["label"], s["text"]) for s in o["trajectory"]["spans"]] for o in outputs]
    assert shapes[0] == shapes[1] == shapes[2]
    assert all(o.keys() == {"answer", "passed", "trajectory"} for o in outputs)


async def test_the_state_is_json_in_every_checkpoint() -> None:
    saver = InMemorySaver()
    graph = build_graph(policy=ScriptedPolicy("wrong"), verifier=right, reflections=2, blind_retries=1).compile(
        checkpointer=saver
    )
    config: Any = {"configurable": {"thread_id": "1"}}
    with warnings.catch_warnings(action="error"):
        await graph.ainvoke(INPUT, config)
        snapshots = [snapshot.values async for snapshot in graph.aget_state_history(config)]
    assert len(snapshots) == 7  # the input, and one for each of the six steps
    assert all(json.loads(json.dumps(values)) == values for values in snapshots)


def test_after_an_error_a_resumed_run_repeats_no_call() -> None:
    down = EndpointError("down")
    policy = ScriptedPolicy({"attempt": "wrong", "reflect": "hm", "retry": [down, "right"]})
    graph = build_graph(policy=policy, verifier=right).compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    with pytest.raises(EndpointError, match="down"):
        graph.invoke(INPUT, config)
    output = graph.invoke(None, config)
    assert (output["answer"], output["passed"]) == ("right", True)
    assert [c.asked for c in policy.calls] == ["attempt", "reflect", "retry", "retry"]


def test_a_thread_may_hold_several_episodes() -> None:
    policy = ScriptedPolicy(["right", "wrong", "hm", "wrong too"])
    graph = build_graph(policy=policy, verifier=right).compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    first, second = graph.invoke(INPUT, config), graph.invoke(INPUT, config)
    assert (first["passed"], second["passed"]) == (True, False)
    assert second["answer"] == "wrong too"
    assert labels(Trajectory.model_validate(second["trajectory"]).spans) == ["attempt", "reflect", "retry"]


def test_a_verifier_may_ask_a_person() -> None:
    def person(task: Task, answer: str) -> bool:
        return interrupt({"is this right?": answer}) == "yes"

    policy = ScriptedPolicy(["4?", "hm", "4!"])
    graph = build_graph(policy=policy, verifier=person).compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    asked = [graph.invoke(INPUT, config)["__interrupt__"][0].value]
    asked.append(graph.invoke(Command(resume="no"), config)["__interrupt__"][0].value)
    output = graph.invoke(Command(resume="yes"), config)
    assert asked == [{"is this right?": "4?"}, {"is this right?": "4!"}]
    assert (output["answer"], output["passed"], len(policy.calls)) == ("4!", True, 3)


class AppState(TypedDict):
    question: str
    task: dict[str, Any]
    spans: Annotated[list[Any], operator.add]
    answer: str
    trajectory: dict[str, Any]


@pytest.mark.parametrize("is_async", [False, True])
def test_embedded_it_hands_up_its_output_and_keeps_its_spans(is_async: bool) -> None:
    def ask(state: AppState) -> dict[str, Any]:
        task = Task(messages=({"role": "user", "content": state["question"]},))
        return {"task": task.model_dump(mode="json"), "spans": ["of the app"]}

    app = StateGraph(AppState)
    app.add_node("ask", ask)
    app.add_node("solve", build_graph(policy=ScriptedPolicy("wrong"), verifier=right, reflections=2).compile())
    app.add_edge(START, "ask")
    app.add_edge("ask", "solve")
    graph = app.compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    for n_episodes in (1, 2):
        question: Any = {"question": "2 + 2?"}
        state = asyncio.run(graph.ainvoke(question, config)) if is_async else graph.invoke(question, config)
        assert state["answer"] == "wrong"
        assert state["spans"] == ["of the app"] * n_episodes
        shape = ["attempt", "reflect", "reflect", "retry", "retry"]
        assert labels(Trajectory.model_validate(state["trajectory"]).spans) == shape


def test_an_error_of_the_verifier_leaves_the_graph_as_it_is() -> None:
    def broken(task: Task, answer: str) -> bool:
        raise ValueError("no")

    with pytest.raises(VerifierError, match="ValueError: no"):
        run(ScriptedPolicy("x"), broken)
