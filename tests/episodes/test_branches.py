"""Time travel and edits of the state: a branch is a trajectory of its own, and an edit is visible in the record."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.types import Command, Overwrite

from r3agent import ConfigError, Recorder, Sampling, Task, Trajectory, build_graph, groups, load
from r3agent.testing import ScriptedPolicy
from r3agent.verifiers import find_verifier
from tests.episodes.episodes import FAILS_ONCE, INPUT, labels, on_thread, right, tree

EXACT, EDITED = "trainable-exact", "eval-only"


def graph(script: Any = "wrong", verifier: Any = right, **limits: Any) -> Any:
    return build_graph(policy=ScriptedPolicy(script), verifier=verifier, **limits).compile(InMemorySaver())


def before(app: Any, *node: str) -> Any:
    """The config of the first checkpoint at which `node` is next."""
    *_, state = (state for state in app.get_state_history(on_thread()) if state.next == node)
    return state.config


@pytest.fixture(params=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Any:
    async def runs(app: Any, method: str, *args: Any, **more: Any) -> Any:
        if request.param == "sync":
            return getattr(app, method)(*args, **more)
        return await getattr(app, f"a{method}")(*args, **more)

    return runs


async def test_branch_is_stored_beside_what_it_left(run: Any, tmp_path: Path) -> None:
    app = graph(reflections=8)
    with Recorder(tmp_path) as recorder:
        first = tree(await run(app, "invoke", INPUT, on_thread()))
        second = tree(await run(app, "invoke", None, before(app, "reflect")))
        third = tree(await run(app, "invoke", None, before(app, "retry")))  # of the first: the earliest such checkpoint
        for trajectory in (first, second, third):
            recorder.record(trajectory)
    assert load(tmp_path) == [first, second, third]
    assert len({t.trajectory_id for t in (first, second, third)}) == 3
    assert [t.parent_id for t in (first, second, third)] == [None, first.trajectory_id, first.trajectory_id]
    shared = {span.span_id for span in first.spans} & {span.span_id for span in second.spans}
    assert shared == {first.spans[0].span_id}
    assert {span.capability for span in [*second.spans, *third.spans]} == {EXACT}
    assert [len(group.spans_G) for group in groups([first, second])] == [8, 8]
    assert [len(group.spans_G) for group in groups([first, second, third], "attempt")] == [1]


async def test_branch_is_drawn_with_seeds_of_its_own() -> None:
    policy = ScriptedPolicy("wrong")
    app = build_graph(policy=policy, verifier=right, sampling=Sampling(seed=7)).compile(InMemorySaver())
    await app.ainvoke(INPUT, on_thread())
    await app.ainvoke(None, before(app, "reflect"))
    assert len({call.sampling and call.sampling.seed for call in policy.calls}) == 5


async def test_branch_of_a_branch_names_the_branch(run: Any) -> None:
    app = graph(max_attempts=3)
    first = tree(await run(app, "invoke", INPUT, on_thread()))
    second = tree(await run(app, "invoke", None, before(app, "reflect")))
    later = next(s for s in app.get_state_history(on_thread()) if s.next == ("reflect",))
    third = tree(await run(app, "invoke", None, later.config))
    assert (second.parent_id, third.parent_id) == (first.trajectory_id, second.trajectory_id)
    assert third.spans[:3] == second.spans[:3]
    assert third.spans[3:] != second.spans[3:]


async def test_resumed_episode_stays_one(run: Any) -> None:
    fail = [True]

    def check(task: Task, answer: str) -> bool:
        if answer == "right" and fail:
            raise TimeoutError("down")
        return answer == "right"

    app = graph(FAILS_ONCE, check)
    with pytest.raises(Exception, match="down"):
        await run(app, "invoke", INPUT, on_thread())
    fail.clear()
    once = tree(await run(app, "invoke", None, on_thread()))
    again = tree(app.get_state(on_thread()).values)
    assert (once.trajectory_id, once.parent_id) == (once.spans[0].span_id, None)
    assert again == once


async def test_branch_that_is_resumed_keeps_its_id(run: Any) -> None:
    app = graph(max_attempts=4)
    await run(app, "invoke", INPUT, on_thread())
    config = await run(app, "update_state", before(app, "reflect"), None)
    stopped = await run(app, "invoke", None, config, interrupt_before=["verify"])
    branch = app.get_state(on_thread()).values["lineage"]["trajectory_id"]
    assert stopped.get("trajectory") is None
    assert tree(await run(app, "invoke", None, on_thread())).trajectory_id == branch


async def test_next_episode_of_a_thread_is_no_branch(run: Any) -> None:
    app = graph(FAILS_ONCE)
    await run(app, "invoke", INPUT, on_thread())
    await run(app, "invoke", None, before(app, "reflect"))
    after = tree(await run(app, "invoke", INPUT, on_thread()))
    assert (after.trajectory_id, after.parent_id) == (after.spans[0].span_id, None)


async def test_branch_inside_a_larger_graph_is_its_own(run: Any) -> None:
    class State(TypedDict):
        task: dict[str, Any]
        trajectory: dict[str, Any]

    outer = StateGraph(State)
    outer.add_node("solve", build_graph(policy=ScriptedPolicy("wrong"), verifier=right).compile())
    app = outer.add_edge(START, "solve").compile(InMemorySaver())
    first = tree(await run(app, "invoke", INPUT, on_thread()))
    second = tree(await run(app, "invoke", None, before(app, "solve")))
    assert first.trajectory_id != second.trajectory_id


@pytest.mark.parametrize("as_node", [None, "verify", "attempt", "retry", "reflect"])
async def test_update_state_works_as_any_node(run: Any, as_node: str | None) -> None:
    app = graph(FAILS_ONCE)
    first = tree(await run(app, "invoke", INPUT, on_thread()))
    config = await run(app, "update_state", before(app, "reflect"), {"answer": "?"}, as_node=as_node)
    branch = tree(await run(app, "invoke", None, config))
    assert branch.parent_id == first.trajectory_id
    assert branch.spans[0] == first.spans[0]
    assert (branch.spans[-1].label, branch.passed) == ("retry", True)


async def test_edited_output_is_logged_because_it_changes_nothing(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    app = graph(FAILS_ONCE)
    await run(app, "invoke", INPUT, on_thread())
    assert caplog.text == ""
    config = await run(app, "update_state", before(app, "reflect"), {"passed": True})
    await run(app, "invoke", None, config)
    assert caplog.text.count("answer or passed was edited, which changes nothing") == 1


async def test_edited_answer_is_judged_anew_and_not_trained_on(run: Any) -> None:
    app = graph()
    first = tree(await run(app, "invoke", INPUT, on_thread()))
    edit = {"spans": [{"span_id": first.spans[0].span_id, "text": "right"}]}
    config = await run(app, "update_state", before(app, "reflect"), edit, as_node="attempt")
    output = await run(app, "invoke", None, config)
    [span] = tree(output).spans
    assert (output["answer"], output["passed"], span.text, span.finish_reason) == ("right", True, "right", None)
    assert (span.capability, span.token_ids, span.logprobs) == (EDITED, None, None)
    assert "edited" in (span.capability_note or "")
    assert tree(output).parent_id == first.trajectory_id


async def test_edited_answer_is_noticed_however_it_was_edited(run: Any) -> None:
    app = graph(reflections=2)
    first = tree(await run(app, "invoke", INPUT, on_thread()))
    attempt, *rest = (span.model_dump(mode="json") for span in first.spans[:3])
    whole = {"spans": Overwrite([{**attempt, "text": "right"}, *rest])}  # past the reducer
    config = await run(app, "update_state", before(app, "retry"), whole)
    spans = tree(await run(app, "invoke", None, config)).spans
    assert [s.capability for s in spans] == [EDITED] * 3 + [EXACT] * 2
    assert [s.passed for s in spans if s.label != "reflect"] == [True, False, False]

    app = graph("wrong", find_verifier("person"), max_attempts=1)
    await run(app, "invoke", INPUT, on_thread())
    [attempt] = app.get_state(on_thread()).values["spans"]
    command = Command(update={"spans": [{**attempt, "text": "right"}]}, resume=True)
    [edited] = tree(await run(app, "invoke", command, on_thread())).spans
    assert (edited.text, edited.passed, edited.capability) == ("right", True, EDITED)


async def test_edited_span_grades_down_what_was_sampled_after_it(run: Any) -> None:
    app = graph(max_attempts=3)
    first = tree(await run(app, "invoke", INPUT, on_thread()))
    reflection = first.spans[1]
    edit = {"spans": [{**reflection.model_dump(mode="json"), "text": "think harder"}]}
    later = next(s for s in app.get_state_history(on_thread()) if s.next == ("reflect",))
    config = await run(app, "update_state", later.config, edit)
    spans = tree(await run(app, "invoke", None, config)).spans
    assert [s.capability for s in spans] == [EXACT, EDITED, EDITED, EXACT, EXACT]
    assert spans[1].text == "think harder"
    assert [s.passed for s in spans] == [False, None, False, None, False]


async def test_edited_verdict_ends_the_episode_and_keeps_the_tokens(run: Any) -> None:
    policy = ScriptedPolicy("wrong")
    app = build_graph(policy=policy, verifier=right).compile(InMemorySaver())
    first = tree(await run(app, "invoke", INPUT, on_thread()))
    edit = {"spans": [{"span_id": first.spans[0].span_id, "verdict": {"passed": True, "score": 1.0}}]}
    config = await run(app, "update_state", before(app, "reflect"), edit)
    output = await run(app, "invoke", None, config)
    [span] = tree(output).spans
    assert (output["passed"], span.capability, len(policy.calls)) == (True, EXACT, 3)
    assert span.verdict is not None
    assert (span.verdict.by, span.verdict.overruled) == ("update_state", False)


@pytest.mark.parametrize(
    ("edit", "capability", "passed"),
    [
        ({"info": {"answer": "wrong"}}, EXACT, True),
        ({"messages": [{"role": "user", "content": "3 + 3?"}]}, EDITED, False),
    ],
)
async def test_edited_task_does_not_keep_the_verdicts_of_the_other(
    run: Any, edit: Any, capability: str, passed: bool
) -> None:
    def check(task: Task, answer: str) -> bool:
        return answer == task.info.get("answer", "right")

    app = graph(verifier=check)
    await run(app, "invoke", INPUT, on_thread())
    config = await run(app, "update_state", before(app, "reflect"), {"task": {**INPUT["task"], **edit}})
    attempt, *grown = tree(await run(app, "invoke", None, config)).spans
    assert (attempt.capability, attempt.passed) == (capability, passed)
    assert {span.capability for span in grown} == {EXACT}
    assert [span["capability"] for span in app.get_state(on_thread()).values["spans"]] == [capability, EXACT, EXACT]


async def test_frontier_can_be_edited(run: Any) -> None:
    app = graph()
    await run(app, "invoke", INPUT, on_thread())
    config = await run(app, "update_state", before(app, "reflect"), {"frontier": []}, as_node="retry")
    assert len(labels(await run(app, "invoke", None, config))) == 3  # as a retry: judged, and found to have failed
    config = await run(app, "update_state", before(app, "reflect"), {"frontier": []})
    assert app.get_state(config).next == ()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"spans": [{"text": "x"}]}, "{'text': 'x'} has no span_id"),
        ({"spans": ["x"]}, "'x' has no span_id"),
        ({"spans": Overwrite([{"label": "attempt"}])}, "{'label': 'attempt'} has no span_id"),
        ({"spans": Overwrite([])}, "the state has no attempt"),
        ({"frontier": ["zz"]}, r"frontier = \['zz'\]: zz is no span of this episode"),
        ({"spans": [{"span_id": "new", "label": "retry", "text": "x"}]}, r"the state was edited: .*model"),
        ({"spans": [{"span_id": "typo", "text": "x"}]}, r"there is no span 'typo', known are .*needs label, model$"),
        ({"task": {"prompt": "x"}}, "unknown key 'task.prompt'"),
    ],
)
async def test_edit_that_leaves_no_episode_is_refused_by_name(run: Any, edit: Any, message: str) -> None:
    app = graph()
    await run(app, "invoke", INPUT, on_thread())
    with pytest.raises(ConfigError, match=message):
        await run(app, "invoke", None, await run(app, "update_state", before(app, "reflect"), edit))


async def test_own_answer_is_judged_on_a_fresh_thread(run: Any) -> None:
    app = graph()
    own = {"span_id": "own", "label": "attempt", "text": "right", "model": "a person"}
    config = await run(app, "update_state", on_thread(), {**INPUT, "spans": [own]}, as_node="attempt")
    output = await run(app, "invoke", None, config)
    assert (output["passed"], tree(output).spans[0].capability) == (True, EDITED)
    config = await run(app, "update_state", on_thread("2"), INPUT, as_node="attempt")
    with pytest.raises(ConfigError, match="the state has no attempt"):
        await run(app, "invoke", None, config)


def test_record_of_an_unknown_branch_still_reads() -> None:
    record = Trajectory(task=Task.model_validate(INPUT["task"]), parent_id="elsewhere")
    assert Trajectory.model_validate_json(record.model_dump_json()) == record
