from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from r3agent.episodes.state import EpisodeState, merge_spans, tree_of
from tests.support.trees import TASK, span

json_spans = st.lists(
    st.fixed_dictionaries(
        {"span_id": st.sampled_from("abcd"), "label": st.just("attempt"), "model": st.just("m"), "text": st.text()}
    ),
    max_size=6,
)
merged = json_spans.map(lambda spans: merge_spans([], spans))
"""Contents of the state: every span once."""


@given(merged, json_spans)
def test_merging_again_changes_nothing(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> None:
    once = merge_spans(left, right)
    assert merge_spans(once, right) == once
    assert merge_spans(once, once) == once


@given(merged, merged, merged)
def test_merging_is_associative(a: list[dict[str, Any]], b: list[dict[str, Any]], c: list[dict[str, Any]]) -> None:
    assert merge_spans(merge_spans(a, b), c) == merge_spans(a, merge_spans(b, c))


children = merged.map(lambda spans: [{**span, "label": "retry"} for span in spans])


@given(children, children)
def test_merging_keeps_every_span_once_in_order_and_the_right_one_wins(
    left: list[dict[str, Any]], right: list[dict[str, Any]]
) -> None:
    newest = {s["span_id"]: s for s in [*left, *right]}
    assert merge_spans(left, right) == list(newest.values())


def test_merging_a_new_attempt_drops_earlier_episodes() -> None:
    first, second = span("attempt", passed=False), span("attempt", passed=True)
    old = [s.model_dump(mode="json") for s in (first, span("reflect", first))]
    new = [s.model_dump(mode="json") for s in (second, span("attempt", second))]
    once = merge_spans(old, new[:1])
    assert merge_spans(once, new[1:]) == new
    assert merge_spans(new, [{"span_id": new[0]["span_id"], "text": "edited"}])[1:] == new[1:]


def test_the_tree_is_that_of_the_last_attempt() -> None:
    earlier, attempt = span("attempt", passed=True), span("attempt", passed=False)
    reflection = span("reflect", attempt)
    spans = [s.model_dump(mode="json") for s in (earlier, attempt, reflection)]
    state = EpisodeState(
        task=TASK.model_dump(mode="json"), spans=spans, answer="", passed=False, trajectory={}, frontier=[]
    )
    tree = tree_of(state)
    assert tree.spans == (attempt, reflection)
    assert tree.trajectory_id == attempt.span_id
