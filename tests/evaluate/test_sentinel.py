from __future__ import annotations

import pytest

from r3agent.evaluate import Comparison, Decision, compare, gate
from r3agent.evaluate.sentinel import lost
from r3agent.records.trajectory import Label, Span, Task, Trajectory, Verdict
from tests.evaluate.episodes import episode

ANSWER = "take seven, add three, then double it and take four away"


def reflecting(version: str, *, leaking: int = 0, tokens: int = 40, n: int = 60) -> list[Trajectory]:
    """`n` tasks whose first try fails and whose retry passes; some reflections give the answer away."""

    def span(label: Label, text: str, parent: Span | None, passed: bool | None, tokens: int = 9) -> Span:
        return Span(
            label=label,
            text=text,
            model="m",
            policy_version=version,
            parent_id=parent and parent.span_id,
            completion_tokens=tokens,
            verdict=None if passed is None else Verdict(passed=passed, score=float(passed)),
        )

    def one(i: int) -> Trajectory:
        attempt = span("attempt", "I do not know", None, False)
        reflection = span(
            "reflect", f"Say: {ANSWER}" if i < leaking else "Use\tthe rule", attempt, None, tokens + i % 3
        )
        spans = (attempt, reflection, span("retry", ANSWER, reflection, True))
        return Trajectory(task=Task(id=f"t{i:02}", messages=({"role": "user", "content": f"{i}?"},)), spans=spans)

    return [one(i) for i in range(n)]


def decide(comparison: Comparison) -> Decision:
    limits = {"max_leaks": 5.0, "max_length_factor": 3.0, "max_disagreement": 5.0}
    return gate(comparison, min_lift=-100, max_regression=100, alpha=1.0, **limits)


def blocked(decision: Decision) -> list[str]:
    """Conditions of the sentinel that are not met, which are all that have examples."""
    found = [
        r.removeprefix("NOT met: ") for r in decision.reasons if r.startswith("NOT met: ") and "for a gain" not in r
    ]
    assert found == [*decision.examples]
    return found


def test_sentinel_blocks_reflections_that_give_the_answer_away() -> None:
    candidate = reflecting("v0001", leaking=20)
    decision = decide(compare(reflecting("v0000"), candidate))
    [condition] = blocked(decision)
    assert "reflections that give the answer away +33.3 points" in condition
    shown = decision.examples[condition]
    assert [e.trajectory_id for e in shown] == [t.trajectory_id for t in candidate[:3]]
    assert all(ANSWER in e.excerpt for e in shown)
    assert not decision.promote


@pytest.mark.parametrize(("old", "new"), [(40, 200), (200, 40)])
def test_sentinel_blocks_reflections_of_another_length(old: int, new: int) -> None:
    decision = decide(compare(reflecting("v0000", tokens=old), reflecting("v0001", tokens=new)))
    [condition] = blocked(decision)
    assert f"reflections {old + 1} -> {new + 1} tokens, at most 3 times longer or shorter" in condition
    assert decision.examples[condition][0].excerpt == "Use the rule"


def test_sentinel_blocks_answers_that_a_second_verifier_refuses() -> None:
    old, new = reflecting("v0000"), reflecting("v0001")
    second = {(t.trajectory_id, t.tries[-1].last.span_id): t not in new[:15] for t in (*old, *new)}
    comparison = compare(old, new, second=second)
    [condition] = blocked(decide(comparison))
    assert "answers that a second verifier refuses +25.0 points" in condition
    assert Comparison.model_validate_json(comparison.model_dump_json()) == comparison


def test_sentinel_lets_changes_by_chance_and_within_the_limits_pass() -> None:
    few = compare(reflecting("v0000", n=12), reflecting("v0001", n=12, leaking=1))
    assert few.leaks is not None
    assert few.leaks.points > 5
    assert blocked(decide(few)) == []
    assert blocked(decide(compare(reflecting("v0000"), reflecting("v0001", tokens=100)))) == []


def test_sentinel_shows_first_tries_that_were_lost() -> None:
    before = [episode(str(i), i < 3) for i in range(4)]
    after = [episode(str(i), i == 0, version="v0001") for i in range(4)]
    assert [e.trajectory_id for e in lost(before, after)] == [t.trajectory_id for t in after[1:3]]
