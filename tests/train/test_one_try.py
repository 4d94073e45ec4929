"""Comparison of learning from one try with siblings, of `benchmarks/one_try.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations_with_replacement
from math import ceil
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import kto, memory, one_try
from benchmarks.noisy import NOISY
from benchmarks.one_try import ARMS, FIRST_TUNING_SEED, KTO, RATES, Lab, at_edge, made_with, settings_of, table
from r3agent.records.trajectory import Trajectory
from r3agent.run.stages import Run
from r3agent.tasks import countdown, find_tasks
from r3agent.tasks.splits import split_of
from r3agent.testing import ScriptedEndpoint
from r3agent.train import PolicyStart, Row, TrainConfig, build_rows
from r3agent.train.weights import load_model
from r3agent.verifiers import find_verifier

SIZE = {"labels": 40, "steps": 3, "problems": 300}
NOWHERE = "http://127.0.0.1:9/v1"


def held_out(run: Run) -> set[str]:
    drawn = run.config.eval
    return {task.id for task in run.draw_tasks(drawn.n, split=drawn.split, seed=drawn.seed)}


def targets(numbers: tuple[int, ...]) -> set[int]:
    """Return all targets that can be made of some numbers."""
    if len(numbers) == 1:
        return {*numbers}
    return {target for step in countdown.steps(numbers) for target in targets((step.value, *step.rest))}


def test_seeds_share_more_than_half_of_their_problems(tmp_path: Path) -> None:
    one, other = (held_out(Lab(tmp_path / f"{seed}", seed, SIZE, NOWHERE).run(1, 0.0)) for seed in (0, 1))
    assert len(one) == len(other) == SIZE["problems"]
    assert 0.5 < len(one & other) / len(one) < 0.6


def test_tuning_seeds_have_problems_that_no_other_has(tmp_path: Path) -> None:
    hands = combinations_with_replacement(range(1, 11), 3)
    ids = [countdown.problem_id([*hand], target) for hand in hands for target in targets(hand) if target <= 60]
    pools = {split: {id_ for id_ in ids if split_of(id_) == split} for split in ("test", "gate")}
    text = " ".join((one_try.__doc__ or "").split())
    assert f"the {len(pools['test'])} of Countdown's test split" in text
    assert f"the {len(pools['gate'])} of the gate split" in text
    tuning = held_out(Lab(tmp_path / "tuning", FIRST_TUNING_SEED, SIZE, NOWHERE).run(1, 0.0))
    assert len(tuning) >= len(pools["gate"]) - 1  # a seed may not find the rarest
    assert tuning <= pools["gate"]
    assert held_out(Lab(tmp_path / "counted", 0, SIZE, NOWHERE).run(1, 0.0)) <= pools["test"]


def test_memory_draws_held_out_problems_for_each_seed() -> None:
    one, other = (
        {task.id for task in find_tasks("countdown", 40, seed=memory.settings_of(seed, 40)["eval.seed"], split="test")}
        for seed in (0, 1)
    )
    assert one != other


def test_noisy_verifier_turns_what_less_noise_turns() -> None:
    levels = [find_verifier(NOISY, noise=noise, seed=3) for noise in (0.0, 0.1, 0.2, 1.0)]
    answers = [
        (task, text)
        for task in find_tasks("countdown", 300)
        for text in ("none", str(task.gold and task.gold["content"]))
    ]
    passed = np.array([[level(task, text).passed for level in levels] for task, text in answers])  # type: ignore
    assert (passed[:, 0] == [False, True] * 300).all()
    turned = passed != passed[:, :1]
    assert (turned[:, 1] <= turned[:, 2]).all()
    assert turned.mean(axis=0) == pytest.approx([0, 0.1, 0.2, 1], abs=0.04)
    elsewhere = [find_verifier(NOISY, noise=0.1, seed=4)(task, text).passed for task, text in answers]  # type: ignore
    assert (passed[:, 1] != elsewhere).any()


def test_lab_collects_with_noise_and_measures_without(tmp_path: Path) -> None:
    with ScriptedEndpoint("<answer>1</answer>", model="bundled") as endpoint:  # always wrong
        lab = Lab(tmp_path, 0, {**SIZE, "problems": 8}, endpoint.url)
        exact, turned = lab.recorded(1, 0.0), lab.recorded(1, 1.0)
        measured = lab.run(1, 1.0, **{"task.verifier_params": {}}).measure("v0000")
        other = Lab(tmp_path / "1", 1, SIZE, endpoint.url).recorded(1, 1.0)
    assert [[span.label for span in episode.spans] for episode in exact] == [["attempt", "reflect", "retry"]] * 20
    assert [[span.label for span in episode.spans] for episode in turned] == [["attempt"]] * 40
    assert all(episode.passed for episode in turned)
    assert measured.first_try is not None
    assert (measured.first_try.rate, measured.n_tasks) == (0, 8)
    shared = {episode.task.id for episode in turned} & {episode.task.id for episode in other}
    assert len(shared) < 10  # of 40: a seed draws its own tasks


def test_result_depends_on_what_its_key_has() -> None:
    arms = {made_with(arm, settings_of(0, SIZE), SIZE) for arm in ARMS}
    assert len(arms) == len(ARMS)
    assert made_with(KTO, settings_of(1, SIZE), SIZE) not in arms


@torch.no_grad()
def margin(rows: Sequence[Row], start: PolicyStart) -> float:
    """Return by how many nats the policy prefers the rows with a reward to the others."""
    model = load_model(start, TrainConfig(method="lora")).eval()
    sums: dict[bool, list[float]] = {True: [], False: []}
    for row in rows:
        ids = torch.tensor([row.prompt_ids_P + row.completion_ids_T])
        logprobs = model(ids).logits[0, len(row.prompt_ids_P) - 1 : -1].log_softmax(-1)
        sums[row.reward > 0].append(float(logprobs.gather(1, torch.tensor([row.completion_ids_T]).T).sum()))
    return float(np.mean(sums[True]) - np.mean(sums[False]))


def test_kto_prefers_the_desirable_rows_in_its_optimizer_steps(
    record: Callable[..., list[Trajectory]], start: PolicyStart, tmp_path: Path
) -> None:
    config = TrainConfig.model_validate({"recipe": "paper", "method": "lora", "learning_rate": 3e-3, **ARMS[KTO][1]})
    rows, _ = build_rows(record([[1], [0], [1], [0], [1]]), config=config, version="v0000")
    config = config.model_copy(update={"batch_size": ceil(len(rows) / 4)})
    assert len(rows) == 5
    assert kto.train(rows, start, config, "v0001", tmp_path / "v0001") == 3  # of the 4 that were wanted
    trained = start.model_copy(update={"version": "v0001", "adapter": tmp_path / "v0001" / "adapter"})
    assert margin(rows, trained) > margin(rows, start) + 0.01


def test_table_has_the_steps_and_counts_verdicts() -> None:
    result = {"rows": 90, "steps": 23, "labels": 1010, "first_try": {"gain": 1.0}, "after_reflection": {"gain": 2.02}}
    lines, data = table({("8 siblings", 0.1): [result]}, {"8 siblings": 1e-3})
    assert lines[-1] == "| 8 siblings | 10% | 0.001 | 90 | 23 | 1.0 | 2.0 | 2.0 |  |  |"
    assert data["8 siblings, noise 0.1"]["points_per_1000"] == 2.0


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
    columns = kto.columns_of([row, row._replace(completion_ids_T=[3], reward=0.0, advantage=0.25)], 2)
    assert columns["label"] == [True, False]
    assert columns["KL_completion_ids"] == [[3], [2]]


def test_rates_at_the_edge_of_the_grid_are_named() -> None:
    least, *within, largest = RATES
    assert at_edge({"a": least, "b": within[0], "c": largest}) == ["a", "c"]
