from __future__ import annotations

import json
import random
from itertools import chain
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r3agent.records.credit import SOURCES, CreditLabel, Group, RewardSource, credit_label, groups, reward
from r3agent.records.trajectory import EpisodeError, Label, Span, Trajectory, Verdict, mean_success
from tests.support.trees import TASK, span, tree, trees

FITTING = [(label, source) for label, sources in SOURCES.items() for source in sources]


def scored(label: Label, parent: Span, score: float) -> Span:
    return span(label, parent).model_copy(update={"verdict": Verdict(passed=False, score=score)})


def earned(found: list[Group]) -> dict[str, float]:
    return {s.span_id: r for group in found for s, r in zip(group.spans_G, group.rewards_G, strict=True)}


def partition(found: list[Group]) -> set[frozenset[str]]:
    return {frozenset(s.span_id for s in group.spans_G) for group in found}


def test_rewards_as_counted_by_hand() -> None:
    attempt = span("attempt", passed=False)
    half, none, unpaid = (span("reflect", attempt) for _ in range(3))
    retries = [span("retry", half, True), span("retry", half, False), span("retry", none, False)]
    controls = [span("retry", attempt, passed) for passed in (True, False, False, False)]
    grown = tree(attempt, half, none, unpaid, *retries, *controls)

    assert [reward(grown, s) for s in (half, none, unpaid)] == [0.5, 0.0, None]
    assert [reward(grown, s, "lift") for s in (half, none, unpaid)] == [0.25, -0.25, None]
    assert [reward(grown, s) for s in (attempt, *retries)] == [0.0, 1.0, 0.0, 0.0]
    [group] = groups([grown])
    assert (group.parent, group.spans_G, group.rewards_G) == (attempt, (half, none), (0.5, 0.0))
    assert group.has_variance
    [lift] = groups([grown], "reflect", "lift")
    assert lift.rewards_G == (0.25, -0.25)
    assert [g.spans_G for g in groups([grown], "retry")] == [tuple(retries[:2]), tuple(retries[2:])]
    [blind] = groups([grown], "blind_retry")
    assert (blind.parent, blind.rewards_G) == (attempt, (1.0, 0.0, 0.0, 0.0))


def test_a_score_pays_what_success_does_not() -> None:
    attempt = span("attempt", passed=False)
    near, far, unpaid = (span("reflect", attempt) for _ in range(3))
    retries = [scored("retry", near, 0.75), scored("retry", near, 0.25), scored("retry", far, 0.1)]
    grown = tree(attempt, near, far, unpaid, *retries, span("retry", near))
    assert [reward(grown, r) for r in (near, far, unpaid)] == [0.0, 0.0, None]
    assert [reward(grown, r, "retry_score") for r in (near, far, unpaid)] == [0.5, 0.1, None]
    [by_success], [by_score] = groups([grown]), groups([grown], "reflect", "retry_score")
    assert (by_success.has_variance, by_score.has_variance) == (False, True)
    assert [g.rewards_G for g in groups([grown], "retry", "score")] == [(0.75, 0.25), (0.1,)]


def test_what_follows_a_right_try_earns_nothing() -> None:
    attempt = span("attempt", passed=False)
    first, second = span("reflect", attempt), span("reflect", attempt)
    right, wrong, blind = span("retry", first, True), span("retry", second, False), span("retry", attempt, False)
    idle, due = span("reflect", right), span("reflect", wrong)
    again = [span("retry", idle, False), span("retry", due, True)]
    grown = tree(attempt, first, second, right, wrong, blind, idle, due, *again)
    assert [reward(grown, s) for s in (idle, due, *again)] == [None, 1.0, None, 1.0]
    assert [g.spans_G for g in groups([grown])] == [(first, second), (due,)]

    overruled = attempt.model_copy(update={"verdict": Verdict(passed=True, score=1.0, by="me")})
    truly = grown.changed(spans=(overruled, *grown.spans[1:]))
    assert [s.span_id for s in truly.spans if reward(truly, s) is not None] == [attempt.span_id]
    open_ = grown.changed(spans=(attempt.model_copy(update={"verdict": None}), *grown.spans[1:]))
    assert [g.rewards_G for g in groups([open_])] == [(1.0, 0.0), (1.0,)]  # the application knew why it reflected


def test_another_question_after_a_right_try_earns() -> None:
    right = span("attempt", passed=True)
    asked = span("attempt", right, False)
    reflection = span("reflect", asked)
    retry = span("retry", reflection, True)
    grown = tree(right, asked, reflection, retry)
    assert [reward(grown, s) for s in grown.spans] == [1.0, 0.0, 1.0, 1.0]


def test_lift_needs_a_control() -> None:
    attempt = span("attempt", passed=False)
    reflection = span("reflect", attempt)
    grown = tree(attempt, reflection, span("retry", reflection, True))
    assert reward(grown, reflection, "lift") is None
    assert list(groups([grown], "reflect", "lift")) == []


def test_a_leaked_reflection_earns_as_if_its_retries_had_failed() -> None:
    attempt = span("attempt", passed=False)
    reflection, unjudged = span("reflect", attempt), span("reflect", attempt)
    control = [span("retry", attempt, passed) for passed in (True, False)]
    grown = tree(attempt, reflection, unjudged, span("retry", reflection, True), *control)
    sources = SOURCES["reflect"]
    assert [reward(grown, reflection, source, leaked=True) for source in sources] == [0.0, 0.0, -0.5]
    assert [reward(grown, unjudged, source, leaked=True) for source in sources] == [None] * 3


@pytest.mark.parametrize("label", get_args(CreditLabel))
@pytest.mark.parametrize("source", get_args(RewardSource))
def test_a_source_fits_its_labels_and_no_other(label: CreditLabel, source: RewardSource) -> None:
    if source in SOURCES[label]:
        assert list(groups([], label, source)) == []
    else:
        with pytest.raises(ValueError, match=rf"{label} = '{source}': what fits {label} is '{SOURCES[label][0]}' or"):
            list(groups([], label, source))


@given(trees(), st.sampled_from(FITTING))
def test_a_group_is_the_rewarded_spans_of_one_label_parent_and_request(
    trajectory: Trajectory, fitting: tuple[CreditLabel, RewardSource]
) -> None:
    label, source = fitting
    found = list(groups([trajectory], label, source))
    for group in found:
        assert {s.parent_id for s in group.spans_G} == {group.parent and group.parent.span_id}
        assert len({json.dumps(s.request) for s in group.spans_G}) == 1
        assert {credit_label(trajectory, s) for s in group.spans_G} == {group.label} == {label}
        assert group.rewards_G == tuple(reward(trajectory, s, source) for s in group.spans_G)
    asked = {(group.spans_G[0].parent_id, json.dumps(group.spans_G[0].request)) for group in found}
    assert len(asked) == len(found)
    labelled = [s for s in trajectory.spans if credit_label(trajectory, s) == label and not trajectory.is_step(s)]
    rewarded = [s.span_id for s in labelled if reward(trajectory, s, source) is not None]
    assert sorted(s.span_id for group in found for s in group.spans_G) == sorted(rewarded)


@given(trees())
def test_lift_is_success_minus_that_of_the_control(trajectory: Trajectory) -> None:
    for s in trajectory.spans:
        if s.label == "reflect":
            blind = [t for t in trajectory.tries if t.is_blind and t.first.parent_id == s.parent_id]
            success, lift, control = reward(trajectory, s), reward(trajectory, s, "lift"), mean_success(blind)
            assert lift == (None if success is None or control is None else success - control)


@given(trees(), st.sampled_from(FITTING), st.randoms())
def test_the_order_of_spans_changes_nothing(
    trajectory: Trajectory, fitting: tuple[CreditLabel, RewardSource], rng: random.Random
) -> None:
    waiting, placed = list(trajectory.spans), []
    while waiting:  # any order with parents first
        ready = [s for s in waiting if s.parent_id in (None, *(p.span_id for p in placed))]
        placed.append(rng.choice(ready))
        waiting.remove(placed[-1])
    before = list(groups([trajectory], *fitting))
    after = list(groups([trajectory.model_copy(update={"spans": tuple(placed)})], *fitting))
    assert earned(after) == earned(before)
    assert partition(after) == partition(before)


@given(st.lists(trees(), min_size=2, max_size=4), st.sampled_from(FITTING))
def test_only_first_tries_are_compared_across_episodes(
    trajectories: list[Trajectory], fitting: tuple[CreditLabel, RewardSource]
) -> None:
    together = list(groups(trajectories, *fitting))
    apart = list(chain.from_iterable(groups([t], *fitting) for t in trajectories))
    assert earned(together) == earned(apart)
    if fitting[0] != "attempt":
        assert together == apart
    elif apart:  # all are of one task, and of no known version
        assert len(together) == 1


def test_first_tries_are_siblings_by_task_prompt_and_policy_version() -> None:
    def first_try(version: str, passed: bool, content: str = "2 + 2?", task: str = "t") -> Trajectory:
        grown = tree(span("attempt", passed=passed, policy_version=version))
        asked = grown.task.model_copy(update={"id": task, "messages": ({"role": "user", "content": content},)})
        return grown.model_copy(update={"task": asked})

    one, two, unjudged = first_try("v0001", True), first_try("v0001", False), tree(span("attempt"))
    later, other_prompt = first_try("v0002", True), first_try("v0001", True, "3 + 3?")
    other_task = first_try("v0001", True, task="u")
    found = list(groups([one, other_task, later, two, unjudged, other_prompt], "attempt"))
    assert [g.trajectories_G for g in found] == [(one, two), (other_task,), (later,), (other_prompt,)]
    assert found[0].rewards_G == (1.0, 0.0)
    assert found[0].parent is None
    assert len({g.group_id for g in found}) == len(found)


def test_siblings_are_of_one_policy_version() -> None:
    """The weights may be swapped between two of the requests for the rest of a group."""
    attempt = span("attempt", passed=False, policy_version="v0001")
    reflections = [span("reflect", attempt, policy_version=version) for version in ("v0001", "v0002", "v0001", None)]
    retries = [span("retry", reflection, passed=True) for reflection in reflections]
    grown = tree(attempt, *reflections, *retries)
    versions = [[s.policy_version for s in group.spans_G] for group in groups([grown])]
    assert versions == [["v0001", "v0001"], ["v0002"], [None]]


def test_a_router_before_it_does_not_stand_for_the_policy() -> None:
    def routed(version: str, passed: bool) -> Trajectory:
        call = span("attempt", purpose="router", policy_version="v0000")
        return tree(call, span("attempt", call, passed, policy_version=version))

    found = groups([routed("v0001", True), routed("v0002", False), routed("v0001", False)], "attempt")
    assert [group.rewards_G for group in found] == [(1.0, 0.0), (0.0,)]


# ---- what is never compared ----


@pytest.mark.parametrize(
    "other",
    [
        {"sampling": {"temperature": 0.5, "seed": 2}},
        {"sampling": {"temperature": 1.0, "extra": {"top_k": 5}}},
        {"task": TASK.model_copy(update={"gold": {"role": "assistant", "content": "4"}})},
        {"task": TASK.model_copy(update={"info": {"answer": "4"}})},
        {"verifier": "strict"},
    ],
    ids=["temperature", "extra", "gold", "info", "verifier"],
)
def test_groups_never_mix_settings(other: dict[str, Any]) -> None:
    def tried(passed: bool, seed: int, *, sampling: Any = None, **fields: Any) -> Trajectory:
        drawn = sampling or {"temperature": 1.0, "seed": seed, "stop": []}
        return tree(span("attempt", passed=passed, sampling=drawn)).changed(**fields)

    alike = [tried(True, 1), tried(False, 2)]
    assert [group.rewards_G for group in groups(alike, "attempt")] == [(1.0, 0.0)]
    assert [group.rewards_G for group in groups([*alike, tried(True, 3, **other)], "attempt")] == [(1.0, 0.0), (1.0,)]


# ---- tries of several steps ----


def test_tries_of_several_steps_earn_as_one() -> None:
    call = span("attempt")
    failed = span("attempt", call, passed=False, request=({"role": "tool", "content": "order 1"},))
    reflection, other = span("reflect", failed), span("reflect", failed)
    first = span("retry", reflection)
    answer = span("retry", first, passed=True, request=({"role": "tool", "content": "order 7"},))
    at_once = span("retry", other, passed=False)
    errored = span("retry", other, error=EpisodeError(kind="AgentError", message="it fell over"))
    blind = span("retry", failed)
    blind_answer = span("retry", blind, passed=False, standalone=True, request=({"role": "user", "content": "sum up"},))
    again = span("retry", blind_answer, passed=False, request=({"role": "user", "content": "again"},))
    spans = (call, failed, reflection, other, first, answer, at_once, errored, blind, blind_answer, again)
    trajectory = tree(*spans)
    assert [[s.span_id for s in t.steps] for t in trajectory.tries] == [
        [s.span_id for s in steps]
        for steps in ([call, failed], [first, answer], [at_once], [errored], [blind, blind_answer], [again])
    ]
    assert [t.is_blind for t in trajectory.tries] == [False, False, False, False, True, True]
    assert [trajectory.is_blind(s) for s in trajectory.spans] == [False] * 8 + [True] * 3
    assert [reward(trajectory, s) for s in spans] == [0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, None, 0.0, 0.0, 0.0]
    assert trajectory.attempt == failed
    assert trajectory.answer == answer
    (group,) = groups([trajectory])
    assert (group.spans_G, group.rewards_G) == ((reflection, other), (1.0, 0.0))
    assert [group.spans_G for group in groups([trajectory], "retry")] == [(first,), (at_once,)]
    assert [group.spans_G for group in groups([trajectory], "blind_retry")] == [(blind,), (again,)]


def test_span_leaves_out_what_older_releases_refuse() -> None:
    plain = span("attempt", passed=True)
    assert not {"answer", "error", "purpose"} & plain.model_dump(mode="json").keys()
    full = span("attempt", answer="4", error=EpisodeError(kind="AgentError", message="no"), purpose="router")
    assert Span.model_validate(full.model_dump(mode="json")) == full
