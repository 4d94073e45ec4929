"""Comparisons with as many blind retries as the tokens of reflecting would buy."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r3agent.evaluate import compare, evaluate, table
from r3agent.evaluate.equal_tokens import success_of
from r3agent.records.trajectory import Trajectory
from tests.evaluate.episodes import episode, span


def costly(
    task: str, reflected: bool, blind: str, *, reflect: int = 10, retry: int = 20, version: str = "v0000"
) -> Trajectory:
    """A failed first try; `blind` has a letter for each blind retry, `y` for one that passes."""
    failed = episode(task, False, reflected, blind=None, version=version)
    attempt, reflection, after = failed.spans
    spans = [
        attempt,
        reflection.model_copy(update={"completion_tokens": reflect}),
        after.model_copy(update={"completion_tokens": retry}),
        *(span("retry", attempt, letter == "y", version) for letter in blind),
    ]
    spans[3:] = [retry_.model_copy(update={"completion_tokens": 20}) for retry_ in spans[3:]]
    return failed.changed(spans=tuple(spans))


def test_equal_tokens_take_as_many_retries_as_they_buy():
    found = evaluate([costly("a", True, "ynn"), costly("b", False, "yyn"), episode("c", True)])
    assert found.equal_tokens is not None
    assert (found.equal_tokens.retries, found.equal_tokens.recorded) == (1.5, 3)
    one, two = (1 / 3 + 2 / 3) / 2, (2 / 3 + 3 / 3) / 2  # success of one retry, of two
    assert found.blind_equal_tokens is not None
    assert found.blind_equal_tokens.rate == pytest.approx((2 * (one + two) / 2 + 1) / 3)
    assert found.blind_retry is not None
    assert found.blind_retry.rate == pytest.approx((2 * one + 1) / 3)
    assert found.lift_at_equal_tokens is not None
    assert found.lift_at_equal_tokens.points == pytest.approx(100 * (2 / 3 - found.blind_equal_tokens.rate))


def test_equal_tokens_count_all_steps_of_a_try():
    spans = list(costly("a", True, "n").spans)
    for blind in (False, True):  # each retry is a call and, after a result, an answer
        place = next(
            i for i, s in enumerate(spans) if s.label == "retry" and (s.parent_id == spans[0].span_id) == blind
        )
        call, result = spans[place], ({"role": "tool", "tool_call_id": "c", "content": "4"},)
        answer = call.model_copy(update={"span_id": f"{blind}", "parent_id": call.span_id, "request": result})
        spans[place : place + 1] = [call.model_copy(update={"verdict": None, "completion_tokens": 7}), answer]
    found = evaluate([costly("a", True, "n").changed(spans=tuple(spans))])
    assert found.equal_tokens is not None
    assert (found.equal_tokens.reflecting, found.equal_tokens.blind_retry) == (10 + 27, 27)
    assert found.after_reflection is not None
    assert found.blind_retry is not None
    assert (found.after_reflection.rate, found.blind_retry.rate, found.errors.rate) == (1, 0, 0)


def test_equal_tokens_with_too_few_retries_name_the_setting():
    found = evaluate([costly("a", True, "nn", reflect=42)])
    assert (found.blind_equal_tokens, found.lift_at_equal_tokens) == (None, None)
    assert table(found).splitlines()[-1] == (
        "reflecting and the retry after it sample 62.0 tokens, a blind retry 20.0, so they cost as much as 3.1 blind "
        "retries; eval.blind_retries = 4 compares them at equal tokens"
    )


def test_equal_tokens_without_counts_are_not_compared():
    found = evaluate([episode("a", False, reflected=True, blind=True)])
    assert (found.equal_tokens, found.blind_equal_tokens) == (None, None)


def test_equal_tokens_are_compared_between_versions():
    old = [costly(str(i), i < 20, "yn" if i < 20 else "nn") for i in range(40)]
    new = [costly(str(i), i < 32, "yn" if i < 20 else "nn", version="v0001") for i in range(40)]
    found = compare(old, new)
    assert found.blind_equal_tokens is not None
    assert (found.blind_equal_tokens.points, found.blind_equal_tokens.p_value) == (0.0, 1.0)
    assert found.lift_at_equal_tokens is not None
    assert found.lift_at_equal_tokens.points == pytest.approx(30)
    assert found.lift_at_equal_tokens.p_value == pytest.approx(2 / 2**12)
    rows = {line[:20].strip(): line for line in table(found).splitlines()}
    assert "+12.5" in rows["lift at equal tokens"]
    assert "blind equal tokens" in rows


@given(passed=st.lists(st.booleans(), min_size=1, max_size=6), data=st.data())
def test_success_of_is_the_mean_over_all_choices(passed: list[bool], data: st.DataObject):
    m = data.draw(st.integers(1, len(passed)))
    retries = [span("retry", None, verdict, "v0000") for verdict in passed]
    chosen = [any(choice) for choice in combinations(passed, m)]
    assert success_of(retries, m) == pytest.approx(sum(chosen) / len(chosen))


@pytest.mark.parametrize("passed", ["y", "nnn", "ynn", "yyn"])
def test_success_of_a_fraction_is_between_whole_numbers(passed: str):
    retries = [span("retry", None, letter == "y", "v0000") for letter in passed]
    found = [success_of(retries, m / 4) for m in range(4 * len(passed) + 2)]
    assert found[-1] is None
    known = [value for value in found[:-1] if value is not None]
    assert len(known) == 4 * len(passed) + 1
    assert known == sorted(known)
    assert (known[0], known[-1]) == (0.0, float("y" in passed))
