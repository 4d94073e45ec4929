from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r3agent.errors import ConfigError
from r3agent.evaluate import Comparison, Decision, compare, evaluate, gate, spend_alpha
from r3agent.evaluate.statistics import difference
from r3agent.records.trajectory import Trajectory
from tests.evaluate.episodes import episode


def version(name: str, *, first: int, reflected: int, blind: int, errors: int = 0, n: int = 100) -> list[Trajectory]:
    """`n` tasks, of which the first ones pass; a retry passes up to the number given."""
    return [
        episode(
            f"task-{i:03d}",
            i < first,
            i < reflected,
            i < blind,
            version=name,
            error="RequestError" if i >= n - errors else None,
        )
        for i in range(n)
    ]


OLD = version("v0000", first=30, reflected=40, blind=35)
NEW = version("v0001", first=32, reflected=60, blind=38)


def test_differences_are_paired():
    found = compare(OLD, NEW)
    assert found.after_reflection is not None
    assert (found.after_reflection.points, found.after_reflection.n_up) == (pytest.approx(20.0), 20)
    assert found.after_reflection.p_value == pytest.approx(2 / 2**20)
    assert found.first_try is not None
    assert found.first_try.points == pytest.approx(2.0)
    lifts = difference([1.0] * 20 + [-1.0] * 3 + [0.0] * 77, bound=2.0)
    assert found.lift_over_blind is not None
    assert found.lift_over_blind.model_dump() == pytest.approx(lifts.model_dump())
    assert (found.baseline.policy, found.candidate.policy) == ("v0000", "v0001")


def test_comparison_of_lifts_that_balance_is_no_evidence():
    def lift(task: int, sizes: tuple[int, ...]) -> Trajectory:
        return episode(f"task-{task}", False, reflected=sizes[task] > 0, blind=sizes[task] < 0)

    old, new = (0,) * 60 + (-1,) * 30, (-1,) * 60 + (1,) * 30
    found = compare([lift(i, old) for i in range(90)], [lift(i, new) for i in range(90)]).lift_over_blind
    assert found is not None
    assert (found.points, found.p_value, found.n_up, found.n_down) == (0.0, 1.0, 30, 60)


def test_order_of_episodes_does_not_matter():
    assert compare(OLD[::-1], NEW[50:] + NEW[:50]) == compare(OLD, NEW)


def test_swapping_the_versions_flips_every_sign():
    there, back = compare(OLD, NEW), compare(NEW, OLD)
    for cell in ("first_try", "after_reflection", "blind_retry", "lift_over_blind"):
        forth, reverse = getattr(there, cell), getattr(back, cell)
        assert (reverse.points, reverse.low, reverse.high) == pytest.approx((-forth.points, -forth.high, -forth.low))
        assert reverse.p_value == pytest.approx(forth.p_value)


def test_record_survives_json():
    found = compare(OLD, NEW)
    assert Comparison.model_validate_json(found.model_dump_json()) == found


def test_record_without_the_newer_fields_is_read():
    newer = {"blind_equal_tokens", "lift_at_equal_tokens"}
    evaluation = newer | {"equal_tokens"}
    found = compare(OLD, NEW)
    old = found.model_dump_json(exclude={**dict.fromkeys(newer, True), "baseline": evaluation, "candidate": evaluation})
    assert Comparison.model_validate_json(old) == found


def test_tasks_missing_on_one_side_are_named():
    found = compare([episode("task-000", False, error="RequestError"), *OLD[1:]], NEW[:98])
    assert found.only_in_candidate == ("task-000",)
    assert found.only_in_baseline == ("task-098", "task-099")
    assert found.first_try is not None
    assert found.first_try.n_tasks == 97


def test_no_task_in_common():
    with pytest.raises(ConfigError, match="0 tasks in common: the baseline has 1 episode, the candidate 1"):
        compare([episode("a", True)], [episode("b", True)])


def test_same_name_for_another_task():
    other = episode("a", True)
    other = other.model_copy(update={"task": other.task.model_copy(update={"info": {"target": 7}})})
    with pytest.raises(ConfigError, match="task a is not the same in both"):
        compare([episode("a", True)], [other])


def decide(comparison: Comparison, **limits: float) -> Decision:
    return gate(comparison, **{"min_lift": 0.0, "max_regression": 1.0, "alpha": 0.05, **limits})


def refused(decision: Decision) -> list[str]:
    assert decision.promote == (not [r for r in decision.reasons if r.startswith("NOT")])
    return [r for r in decision.reasons if r.startswith("NOT")]


def test_better_version_is_promoted():
    assert refused(decide(compare(OLD, NEW), min_lift=10)) == []


def test_lift_below_the_minimum():
    assert refused(decide(compare(OLD, NEW), min_lift=25)) == ["NOT met: after reflection +20.0 points, at least +25"]


def test_gain_by_chance_is_not_promoted():
    slight = version("v0001", first=30, reflected=43, blind=35)
    assert refused(decide(compare(OLD, slight))) == ["NOT met: p = 0.25 for a gain, below 0.05"]


def test_significant_loss_is_not_a_gain():
    worse = version("v0001", first=30, reflected=30, blind=35)
    assert "NOT met: p = 0.002 for a gain, below 0.05" in refused(decide(compare(OLD, worse), min_lift=-100))


def test_gate_tests_the_mean_of_several_samples():
    def episodes(passed_of_10: list[int]) -> list[Trajectory]:
        return [
            episode(f"task-{task:03}", first=False, reflected=sample < passed, sample=sample)
            for task, passed in enumerate(passed_of_10)
            for sample in range(10)
        ]

    few_large_gains = compare(episodes([1] * 40 + [0] * 5), episodes([0] * 40 + [10] * 5))
    assert few_large_gains.after_reflection is not None
    assert few_large_gains.after_reflection.points == pytest.approx(100 / 45)
    assert few_large_gains.after_reflection.p_value > 0.5  # a sign test finds p = 1e-7, of a loss
    assert not decide(few_large_gains).promote
    assert decide(compare(episodes([1] * 40 + [0] * 10), episodes([0] * 30 + [6] * 20))).promote


def test_gate_of_a_loop_keeps_its_level_for_equal_versions():
    """Count loops of 10 rounds that promote anything, among 300 of equal versions; at a constant level 20 % would."""
    rng = random.Random(0)
    equal = compare(OLD, OLD)

    def promotes(alpha: float) -> bool:
        skills = [rng.betavariate(2, 3) for _ in range(100)]
        changes = [float((rng.random() < skill) - (rng.random() < skill)) for skill in skills]
        return decide(equal.model_copy(update={"after_reflection": difference(changes)}), alpha=alpha).promote

    loops = []
    for _ in range(300):
        promoted: list[bool] = []
        for _ in range(10):
            promoted.append(promotes(spend_alpha(0.05, promoted)))
        loops.append(any(promoted))
    assert 1 <= sum(loops) <= 15 + 2 * 4  # two standard errors above 5 %


@given(promoted=st.lists(st.booleans(), max_size=30))
def test_levels_without_gain_add_up_to_at_most_twice_alpha(promoted: list[bool]):
    levels = [spend_alpha(0.05, promoted[:k]) for k in range(len(promoted))]
    assert all(0 < level <= 0.05 for level in levels)
    spent = sum(level for level, promotes in zip(levels, promoted, strict=True) if not promotes)
    assert spent + spend_alpha(0.05, promoted) <= 0.1


def test_levels_stay_whole_while_every_version_gains():
    assert spend_alpha(0.05, []) == spend_alpha(0.05, [True] * 9) == 0.05
    assert [spend_alpha(0.06, [False] * k) for k in range(4)] == pytest.approx([0.06, 0.02, 0.01, 0.006])
    assert spend_alpha(0.06, [False, True]) == pytest.approx(0.01 + 0.02)


def test_regression_of_the_first_try():
    forgetful = version("v0001", first=25, reflected=60, blind=35)
    assert refused(decide(compare(OLD, forgetful))) == ["NOT met: first try -5.0 points, at least -1"]
    assert decide(compare(OLD, forgetful), max_regression=5).promote


def test_errors_count_against_the_candidate():
    failing = version("v0001", first=30, reflected=60, blind=35, errors=10)
    assert refused(decide(compare(OLD, failing))) == ["NOT met: errors +10.0 points, at most +1"]


def test_nothing_to_compare_is_not_promoted():
    gone = version("v0001", first=30, reflected=60, blind=35, errors=100)
    decision = decide(compare(OLD, gone))
    assert not decision.promote
    assert "nothing to compare" in decision.reasons[0]


# ---- settings that differ ----


def drawn(t: Trajectory, sampling: dict[str, Any]) -> Trajectory:
    return t.changed(spans=tuple(s.model_copy(update={"sampling": sampling}) for s in t.spans))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: drawn(t, {"temperature": 0.5, "seed": 2}), r"temperature of attempt is .* in 100 episodes and"),
        (lambda t: t.changed(metadata={"params": {"max_number": 9}}), r"task\.params is"),
        (lambda t: t.changed(metadata={"prompts": "b"}), r"the prompts, by hash, is"),
        (lambda t: t.changed(metadata={"settings": "b"}), r"the hash of prompts, sampling, task and verifier is"),
        (lambda t: t.changed(verifier="strict"), r"the verifier is"),
    ],
    ids=["temperature", "params", "prompts", "settings", "verifier"],
)
def test_compare_refuses_episodes_of_different_settings(
    change: Callable[[Trajectory], Trajectory], message: str
) -> None:
    def plain(t: Trajectory) -> Trajectory:
        metadata = {"params": {"max_number": 8}, "prompts": "a", "settings": "a"}
        return drawn(t, {"temperature": 1.0, "seed": 1}).changed(metadata=metadata, verifier="exact")

    old, new = [plain(t) for t in OLD], [plain(t) for t in NEW]
    assert compare(old, [drawn(t, {"temperature": 1.0, "seed": 3}) for t in new])  # only the seed differs
    other = [change(t) for t in new]
    with pytest.raises(ConfigError, match=message + ".*pass mixed=True"):
        compare(old, other)
    with pytest.raises(ConfigError, match=message):
        evaluate([*old, *other])
    assert compare(old, other, mixed=True).candidate.n_episodes == len(new)


def test_evaluate_refuses_a_task_beside_its_correction() -> None:
    corrected = OLD[0].changed(task=OLD[0].task.model_copy(update={"info": {"answer": "42"}}))
    with pytest.raises(ConfigError, match="the hash of task 'task-000' is"):
        evaluate([*OLD, corrected])
