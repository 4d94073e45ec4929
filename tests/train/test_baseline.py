"""Rewards compared with those of other tasks, so that a try needs no siblings."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import fmean
from typing import Any, TypeAlias

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from r3agent.errors import TrainingError
from r3agent.records.trajectory import Task, Trajectory
from r3agent.train import Row, RowReport, TrainConfig, build_rows
from r3agent.train.baseline import PRIOR
from tests.support.trees import span

EVERYTHING: Any = {"attempt": "success", "reflect": "retry_success", "retry": "success"}
TOKENS: Any = {
    "prompt_token_ids": (1, 2),
    "token_ids": (3,),
    "logprobs": (-1.0,),
    "sampling": {"temperature": 1.0},
    "capability": "trainable-exact",
}
Episode: TypeAlias = tuple[int, Sequence[bool]]
"""Number of the task, and the outcomes of the retry after each reflection; without any, the first try passed."""


def episode(number: int, task: int, outcomes: Sequence[bool], version: str = "v0000") -> Trajectory:
    def step(label: Any, *given: Any, **ids: Any) -> Any:
        return span(label, *given, policy_version=version, **ids, **TOKENS)

    spans = [attempt := step("attempt", None, not outcomes, span_id="a")]
    for i, passed in enumerate(outcomes):
        spans.append(reflection := step("reflect", attempt, span_id=f"r{i}"))
        spans.append(step("retry", reflection, passed, span_id=f"t{i}"))
    messages: Any = ({"role": "user", "content": f"task {task}"},)
    return Trajectory(trajectory_id=f"e{number}", task=Task(id=f"task {task}", messages=messages), spans=tuple(spans))


def recorded(episodes: Sequence[Episode]) -> list[Trajectory]:
    return [episode(i, *one) for i, one in enumerate(episodes)]


def build(trajectories: list[Trajectory], **settings: Any) -> tuple[list[Row], RowReport]:
    values = {"baseline": "batch", "scale_rewards": "none", **settings}
    return build_rows(trajectories, config=TrainConfig.model_validate({"recipe": "paper", **values}), version="v0000")


def baselines(trajectories: list[Trajectory], **settings: Any) -> dict[tuple[str, str, str], float]:
    try:
        rows, _ = build(trajectories, **settings)
    except TrainingError:  # all earned the same
        return {}
    return {(r.label, r.trajectory_id, r.span_id): r.reward - r.advantage for r in rows}


stores = st.lists(st.tuples(st.integers(0, 4), st.lists(st.booleans(), max_size=3)), min_size=2, max_size=12)


def test_baseline_of_one_try_is_the_mean_of_the_others() -> None:
    rows, report = build(recorded([(0, [True]), (1, [False]), (2, [False]), (3, [True]), (4, [])]))
    assert [row.advantage for row in rows] == pytest.approx([2 / 3, -2 / 3, -2 / 3, 2 / 3])
    assert (report.rows, report.groups, report.alone, report.dropped) == (4, 4, 4, {})


def test_baseline_of_siblings_leans_on_their_task() -> None:
    rows, report = build(recorded([(0, [True, True, False]), (1, [False, False])]))
    of_task = {row.span_id: row.reward - row.advantage for row in rows if row.trajectory_id == "e0"}
    assert of_task == pytest.approx({"r0": 1 / (PRIOR + 2), "r1": 1 / (PRIOR + 2), "r2": 2 / (PRIOR + 2)})
    assert report.alone == 0


def test_baseline_knows_what_other_versions_earned_on_a_task() -> None:
    old = [episode(10 + i, i, [passed], "v0001") for i, passed in enumerate([True, True, False, False])]
    new = recorded([(i, [False]) for i in range(4)] + [(4, [True])])
    rows, _ = build_rows(
        [*old, *new],
        config=TrainConfig(recipe="paper", baseline="batch", scale_rewards="none", max_staleness=0),
        version="v0000",
    )
    easy, hard = (row.advantage for row in rows if row.trajectory_id in ("e0", "e3"))
    assert easy < hard < 0  # a failure on an easy task is worse


@given(stores, st.data())
def test_baseline_ignores_the_own_reward(episodes: list[Episode], data: st.DataObject) -> None:
    before = recorded(episodes)
    reflected = [i for i, (_, outcomes) in enumerate(episodes) if outcomes]
    if not reflected:
        return
    i = data.draw(st.sampled_from(reflected))
    turned = [*episodes]
    turned[i] = (episodes[i][0], [not episodes[i][1][0], *episodes[i][1][1:]])
    place = ("reflect", f"e{i}", "r0")
    found = [baselines(trajectories) for trajectories in (before, recorded(turned))]
    if all(place in known for known in found):
        assert found[0][place] == pytest.approx(found[1][place])


@given(stores)
@example([(0, [])] * 8 + [(0, [True]), (0, [False])] + [(task, [True]) for task in range(1, 7)])
def test_baseline_stays_in_the_range_of_the_rewards(episodes: list[Episode]) -> None:
    assert all(0 <= baseline <= 1 for baseline in baselines(recorded(episodes), credit=EVERYTHING).values())


def test_baseline_of_lift_may_be_negative() -> None:
    def harmed(number: int) -> Trajectory:
        whole = episode(number, number, [number == 0])
        control = span("retry", whole.spans[0], True, span_id="b", policy_version="v0000", **TOKENS)
        return whole.model_copy(update={"spans": (*whole.spans, control)})

    found = baselines([harmed(i) for i in range(4)], credit={"reflect": "lift"})
    assert found["reflect", "e0", "r0"] == -1


@pytest.mark.parametrize(("leak", "mean"), [("keep", 2 / 3), ("penalise", 1 / 3), ("drop", 1 / 2)])
def test_baseline_has_the_rewards_of_leaks_that_training_has(leak: str, mean: float) -> None:
    whole, ids = episode(0, 0, [True, True, False]), {"token_ids": (3, 4, 5, 6, 7), "logprobs": (-1.0,) * 5}
    spans = tuple(span.model_copy(update=ids) if span.span_id in ("r0", "t0") else span for span in whole.spans)
    leaky = whole.model_copy(update={"spans": spans})
    rows, report = build([leaky, episode(1, 1, [True])], leak=leak)
    assert report.leaked == 1
    [other] = [row for row in rows if row.trajectory_id == "e1"]
    assert other.reward - other.advantage == pytest.approx(mean)


@given(stores, st.randoms(use_true_random=False))
def test_baselines_do_not_depend_on_the_order(episodes: list[Episode], rng: random.Random) -> None:
    trajectories = recorded(episodes)
    mixed = rng.sample(trajectories, len(trajectories))
    assert baselines(mixed, credit=EVERYTHING) == pytest.approx(baselines(trajectories, credit=EVERYTHING))


@pytest.mark.parametrize("equal", [True, False])
def test_advantages_of_a_constant_policy_have_mean_zero(equal: bool) -> None:
    rng, means = random.Random(0), dict[str, list[float]]()
    for _ in range(8):
        difficulty = [0.4 if equal else rng.random() for _ in range(15)]
        episodes = list[Episode]()
        for task in rng.choices(range(15), k=40):
            passes = [rng.random() < difficulty[task] for _ in range(3)]
            episodes.append((task, [] if passes[0] else passes[1:]))
        for row in build(recorded(episodes), credit=EVERYTHING)[0]:
            means.setdefault(row.label, []).append(row.advantage)
    for label, advantages in means.items():
        assert abs(fmean(advantages)) < 0.08, label


def test_a_single_task_is_compared_with_its_siblings_alone() -> None:
    rows, _ = build(recorded([(0, [True, False, False])]))
    assert [row.advantage for row in rows] == pytest.approx([1, -0.5, -0.5])
    with pytest.raises(TrainingError, match=r"reflect_alone 1: .*baseline = 'batch'"):
        build(recorded([(0, [True])]))


def test_tries_at_their_baseline_have_a_reason_of_their_own() -> None:
    """They have no siblings that could have earned the same."""
    remedy = r"at_baseline 2: they earned exactly their baseline = 'batch', .* or tasks of another difficulty"
    with pytest.raises(TrainingError, match=remedy):
        build(recorded([(0, [True]), (1, [True])]))
    with pytest.raises(TrainingError, match="at_baseline 4"):
        build(recorded([(0, [True, True]), (1, [True, True])]))


def test_group_scale_is_that_of_the_batch_without_siblings() -> None:
    trajectories = recorded([(i, [i % 3 == 0]) for i in range(9)])
    whole, group = (build(trajectories, scale_rewards=scale)[0] for scale in ("batch", "group"))
    assert group == whole
    plain = build(trajectories)[0]
    assert {round(a.advantage / b.advantage, 6) for a, b in zip(whole, plain, strict=True)} == {1.999600}
