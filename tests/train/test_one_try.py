"""Comparison of learning from one try with siblings, of `benchmarks/one_try.py`."""

from __future__ import annotations

from pathlib import Path

from benchmarks import memory
from benchmarks.one_try import RATES, Lab, at_edge, kto_columns
from r3agent.train import Row


def test_each_seed_draws_its_own_held_out_problems(tmp_path: Path) -> None:
    url = "http://127.0.0.1:8000/v1"
    assert [Lab(tmp_path, seed, {"problems": 40}, url).settings["eval.seed"] for seed in (0, 1)] == [0, 1]
    assert [memory.settings_of(seed, 40)["eval.seed"] for seed in (0, 1)] == [0, 1]


def test_kto_label_is_the_reward_and_not_the_advantage() -> None:
    row = Row(
        group_id="g",
        trajectory_id="t",
        span_id="s",
        label="reflect",
        policy_version="v0000",
        prompt_ids_P=[1],
        completion_ids_T=[2],
        logprobs_T=[-1.0],
        temperature=1.0,
        truncated=False,
        reward=1.0,
        advantage=-0.25,
    )
    columns = kto_columns([row, row._replace(completion_ids_T=[3], reward=0.0, advantage=0.25)], 2)
    assert columns["label"] == [True, False]
    assert columns["KL_completion_ids"] == [[3], [2]]


def test_rates_at_the_edge_of_the_grid_are_named() -> None:
    least, *within, largest = RATES
    assert at_edge({"a": least, "b": within[0], "c": largest}) == ["a", "c"]
