from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from r3agent.errors import ArgumentError, SchemaVersionError
from r3agent.records.trajectory import Generation, Span, Task, Trajectory, Verdict, mean_success
from tests.support.trees import TASK, span, trajectories, tree, trees


@given(trajectories())
def test_a_record_survives_json(trajectory: Trajectory) -> None:
    assert Trajectory.model_validate_json(trajectory.model_dump_json()) == trajectory
    assert Trajectory.model_validate(json.loads(json.dumps(trajectory.model_dump(mode="json")))) == trajectory


@given(st.integers(0, 5), st.integers(0, 5))
def test_token_ids_and_logprobs_align_or_are_refused(n_ids: int, n_logprobs: int) -> None:
    fields = {"text": "", "model": "m", "token_ids": range(n_ids), "logprobs": [-0.5] * n_logprobs}
    if n_ids == n_logprobs:
        Generation(**fields)
    else:
        with pytest.raises(ArgumentError, match=f"{n_ids} token ids but {n_logprobs} logprobs"):
            Generation(**fields)


@pytest.mark.parametrize("missing", ["prompt_token_ids", "token_ids", "logprobs"])
def test_trainable_exact_needs_every_token(missing: str) -> None:
    exact = {"prompt_token_ids": [1], "token_ids": [2], "logprobs": [-0.5], "capability": "trainable-exact"}
    with pytest.raises(ArgumentError, match="trainable-exact needs"):
        Generation(text="", model="m", **{**exact, missing: None})


def test_records_are_frozen_and_refuse_unknown_fields() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TASK.id = "other"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValidationError, match="surprise"):
        Task.model_validate({"messages": [{"role": "user", "content": ""}], "surprise": 1})


def test_another_schema_version_is_refused_with_the_remedy() -> None:
    record = tree().model_dump(mode="json") | {"schema_version": 2}
    with pytest.raises(SchemaVersionError, match=r"schema_version = 2: this r3agent reads version 1; open the run"):
        Trajectory.model_validate(record)


def test_a_tasks_default_id_depends_on_its_messages_alone() -> None:
    hello, again, bye = (
        Task(messages=({"role": "user", "content": text},), info=info)
        for text, info in [("hello", {}), ("hello", {"answer": 1}), ("bye", {})]
    )
    assert hello.id == again.id != bye.id


def test_a_task_needs_a_message() -> None:
    with pytest.raises(ArgumentError, match="messages"):
        Task(messages=())


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"n": [1, 2**64]}, r"info\.n\[1\] = 18446744073709551616: an integer of more than 64 bits; a task is JSON"),
        ({"n": -(2**63) - 1}, r"info\.n = -9223372036854775809: an integer of more than 64 bits"),
        ({"n": float("nan")}, r"info\.n = nan: not a finite number"),
        ({"a": {"b": float("-inf")}}, r"info\.a\.b = -inf: not a finite number"),
        ({"check": object()}, r"info\.check: 'object': no JSON; a task is JSON: convert the value, e.g. to text"),
    ],
)
def test_a_task_refuses_values_that_json_cannot_hold(value: dict[str, Any], says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        Task(messages=({"role": "user", "content": "?"},), info=value)


def test_the_shipped_json_schema_is_that_of_the_records() -> None:
    shipped = (files("r3agent.records") / "trajectory.schema.json").read_text()
    assert shipped == json.dumps(Trajectory.model_json_schema(), indent=1) + "\n", "run: make schema"


# ---- the tree ----


def test_spans_form_a_tree_with_parents_first() -> None:
    attempt = span("attempt")
    reflection = span("reflect", attempt)
    assert tree(attempt, reflection).path(reflection) == [attempt, reflection]
    with pytest.raises(ArgumentError, match="comes before its parent"):
        tree(reflection, attempt)
    with pytest.raises(ArgumentError, match="appears twice"):
        tree(attempt, attempt)


@given(trees())
def test_a_span_of_a_generation_is_as_validation_leaves_it(trajectory: Trajectory) -> None:
    for one in trajectory.spans:
        fields = dict(one)
        generation = Generation.model_validate({name: fields.pop(name) for name in Generation.model_fields})
        assert repr(Span.of(generation, **fields)) == repr(one)
        foreign = generation.model_copy(update={"text": "\ud800", "capability": "trainable-retokenised"})
        assert Span.of(foreign, **fields).text == "\ufffd"
        assert Span.of(foreign, **fields).capability == "eval-only"


@given(trees())
def test_walks_agree_with_parent_ids(trajectory: Trajectory) -> None:
    for s in trajectory.spans:
        above = trajectory.parent(s)
        assert (above and above.span_id) == s.parent_id
        assert all(trajectory.parent(child) == s for child in trajectory.children(s))
        assert trajectory.path(s)[-1] == s
        assert trajectory.path(s)[0].parent_id is None
    assert sum(len(trajectory.children(s)) for s in trajectory.spans) == max(len(trajectory.spans) - 1, 0)


@given(trees())
def test_the_prompt_holds_every_request_and_reply_above(trajectory: Trajectory) -> None:
    for s in trajectory.spans:
        expected = list(trajectory.task.messages)
        for ancestor in trajectory.path(s):
            expected += ancestor.request
            if ancestor != s:
                expected.append(ancestor.message)
        assert trajectory.prompt(s) == expected


def test_the_retry_sees_the_failed_attempt_the_request_and_the_reflection() -> None:
    call = {"id": "call", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    attempt = span("attempt", passed=False, text="5", tool_calls=(call,))
    reflection = span("reflect", attempt, text="I added wrong", request=({"role": "user", "content": "reflect"},))
    retry = span("retry", reflection, text="4", request=({"role": "user", "content": "again"},))
    assert tree(attempt, reflection, retry).prompt(retry) == [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "5", "tool_calls": [call]},
        {"role": "user", "content": "reflect"},
        {"role": "assistant", "content": "I added wrong"},
        {"role": "user", "content": "again"},
    ]


def test_the_answer_is_the_first_try_that_passed_else_the_last() -> None:
    attempt = span("attempt", passed=False)
    reflection = span("reflect", attempt)
    wrong, right, later = (span("retry", reflection, passed=passed) for passed in (False, True, False))
    assert tree(attempt, reflection).answer == attempt
    assert tree(attempt, reflection, wrong).passed is False
    assert tree(attempt, reflection, wrong, right, later).answer == right
    assert tree().answer is None
    assert tree().passed is None


def test_a_blind_retry_has_no_reflection_above_it() -> None:
    attempt = span("attempt")
    reflection, control = span("reflect", attempt), span("retry", attempt)
    guided = span("retry", reflection)
    grown = tree(attempt, reflection, control, guided)
    assert [grown.is_blind(s) for s in grown.spans] == [False, False, True, False]


def test_mean_success_leaves_out_what_was_not_judged() -> None:
    assert mean_success([span("retry", None, True), span("retry"), span("retry", None, False)]) == 0.5
    assert mean_success([span("retry")]) is None


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan")])
def test_a_score_is_between_0_and_1(score: float) -> None:
    with pytest.raises(ArgumentError):
        Verdict(passed=False, score=score)
