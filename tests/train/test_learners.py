"""Comparison of learners at equal sampled tokens, of `benchmarks/learners.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import learners
from benchmarks.arms import CELLS, differences, holm, levels, train_arm
from benchmarks.learners import ARMS, BASE, ELSEWHERE, PAPER, TUNING_SEED, Bench, arms_of, change, larger, not_kept
from benchmarks.results import Finished
from r3agent import load
from r3agent.run.demo import GAMES
from r3agent.tasks import countdown

SIZE = {"rounds": 4, "tokens": 100, "steps": 2, "problems": 10}


def cells(first_try: float, after_reflection: float = 0.0) -> dict[str, float]:
    return {"first_try": first_try, "after_reflection": after_reflection, "blind_retry": 0.0}


def run(first_try: float, elsewhere: float = 0.0) -> dict[str, Any]:
    made = {"tokens": 100, "rows": 10, "steps": 8}
    return {**made, "cells": cells(first_try), "elsewhere": cells(0.0, elsewhere)}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench("equation", SIZE, tmp_path / "runs", tmp_path / "finished.jsonl")


def train_by_rate(success: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Let an arm's success depend on its learning rate alone; return a list that gets the settings of each run."""
    trained: list[dict[str, Any]] = []

    def train(arm: str, seed: int, settings: dict[str, Any], **options: Any) -> dict[str, Any]:
        trained.append({"arm": arm, "seed": seed, **settings, **options})
        rate = settings["train.learning_rate"]
        return run(next(value for name, value in success.items() if float(name) == rate)) | {"made_with": {}}

    monkeypatch.setattr(learners, "train_arm", train)
    return trained


@pytest.mark.parametrize(
    ("success", "best", "tried"),
    [
        pytest.param({"5e-4": 1.0, "1e-3": 2.0, "2e-3": 1.5}, "1e-3", 3, id="between"),
        pytest.param({"2.5e-4": 0.5, "5e-4": 2.0, "1e-3": 1.0, "2e-3": 1.0}, "5e-4", 4, id="at-the-lower-edge"),
        pytest.param({"2.5e-4": 3.0, "5e-4": 2.0, "1e-3": 1.0, "2e-3": 1.0}, "2.5e-4", 4, id="least-of-all"),
        pytest.param({"5e-4": 1.0, "1e-3": 2.0, "2e-3": 3.0, "4e-3": 4.0, "8e-3": 3.5}, "4e-3", 5, id="above"),
    ],
)
def test_best_rate_lies_between_two_that_were_tried(
    success: dict[str, float], best: str, tried: int, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = train_by_rate(success, monkeypatch)
    assert bench.best_rate(PAPER) == best
    assert len(trained) == tried
    assert {(own["seed"], own["eval.split"], own["elsewhere"]) for own in trained} == {(TUNING_SEED, "gate", None)}


def test_finished_runs_are_not_repeated(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = train_by_rate({"1e-3": 2.0}, monkeypatch)
    first = bench.result(PAPER, "1e-3", 0)
    assert bench.result(PAPER, "1e-3", 0) == first
    assert bench._replace(size={**SIZE, "steps": 3}).result(PAPER, "1e-3", 0) == first
    assert [own["steps"] for own in trained] == [2, 3]
    assert {key["arm"] for key, _ in Finished(bench.finished).all()} == {PAPER}


def test_steps_of_an_arm_are_its_own_or_those_of_the_bench(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = train_by_rate({"1e-3": 2.0}, monkeypatch)
    for arm in ("first try", "first try, 12 steps"):
        bench.result(arm, "1e-3", 0)
    assert [own["steps"] for own in trained] == [SIZE["steps"], 12]


def test_before_trains_no_version(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = train_by_rate({"1e-3": 2.0}, monkeypatch)
    bench.before(0)
    assert [(own["arm"], own["rounds"]) for own in trained] == [(BASE, 0)]


def test_arms_of_steps_are_trained_on_what_they_name() -> None:
    assert arms_of("equation") == [*ARMS]
    left_out = set(ARMS) - set(arms_of("steps"))
    assert left_out == {arm for arm, own in ARMS.items() if "train.distill" in own}


@pytest.mark.parametrize("game", ["equation", "steps"])
def test_larger_problems_are_none_that_training_draws(game: str) -> None:
    tasks = list(larger(60, seed=0, split="test", game=game))
    assert len({task.id for task in tasks}) == 60
    drawn = {task.id for split in ("train", "test") for task in countdown.generate(9999, split=split)}
    assert len(drawn) > 2000
    assert not drawn & {task.id.replace("countdown_steps:", "countdown:") for task in tasks}


@pytest.mark.parametrize(("arm", "rounds"), [(BASE, 0), ("imitate 4 first tries, replayed", 1)])
def test_train_arm_measures_larger_problems_too(arm: str, rounds: int, tmp_path: Path) -> None:
    size = {"rounds": rounds, "tokens": 2000, "steps": 2, "problems": 6}
    settings = {**GAMES["equation"], **ARMS.get(arm, {})}
    result = train_arm(arm, 0, settings, **size, out=tmp_path, elsewhere=ELSEWHERE["equation"])
    assert {*result["cells"]} == {*result["elsewhere"]} == {*CELLS}
    [there] = tmp_path.glob(f"*/elsewhere/eval/v000{rounds}")
    measured = load(there)
    assert len(measured) == 6
    assert all(max(episode.task.info["numbers"]) > 10 or episode.task.info["target"] > 60 for episode in measured)


def test_holm_adjusts_by_rank_and_keeps_the_order() -> None:
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert adjusted == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})


def test_differences_are_paired_over_the_seeds() -> None:
    results = {"first try": [run(10.0), run(20.0), run(30.0)], "other": [run(12.0), run(21.0), run(33.0)]}
    lines, data = differences(results, "first try")
    assert data["other"]["first_try"]["points"] == 2.0
    assert data["other"]["first_try"]["p"] == pytest.approx(0.0742, abs=1e-4)
    assert data["other"]["after_reflection"]["p"] is None
    assert lines[-1].startswith("| other | 2.0 [-0.5, 4.5] | 0.074 | 0.0 ")


def test_differences_count_arms_that_are_not_rendered() -> None:
    results = {"first try": [run(10.0), run(20.0), run(30.0)], "other": [run(12.0), run(21.0), run(33.0)]}
    lines, data = differences(results, "first try", others={"gone": [run(11.0), run(24.0), run(30.0)]})
    assert data.keys() == {"other"}
    assert data["other"]["first_try"]["p"] == pytest.approx(2 * 0.0742, abs=1e-4)
    assert not any("gone" in line for line in lines)


def test_arms_that_are_not_kept_count_at_their_own_size() -> None:
    found = not_kept("equation", learners.SIZE, 5)
    assert len(found) == 7
    assert {len(runs) for runs in found.values()} == {5}
    assert not_kept("steps", learners.SIZE, 5) == not_kept("equation", SIZE, 9) == {}
    with pytest.raises(SystemExit, match=r"--seeds 6: .*PODS.* have fewer"):
        not_kept("equation", learners.SIZE, 6)


def test_levels_show_the_base_first() -> None:
    _, _, before, arm = levels({"first try": [run(10.0), run(20.0)]}, [run(1.0), run(3.0)])
    assert before.startswith("| before | | | | 2.0 [")
    assert arm.startswith("| first try | 100 | 10 | 8 | 15.0 [")


def test_change_is_that_on_the_larger_problems() -> None:
    results = {"first try": [run(0.0, elsewhere=15.0), run(0.0, elsewhere=14.0)]}
    assert change(results, [run(0.0, elsewhere=10.0), run(0.0, elsewhere=10.0)]) == {"first try": "4.5 [-1.9, 10.9]"}
