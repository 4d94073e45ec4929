from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r3agent.errors import ConfigError
from r3agent.records.trajectory import Task
from r3agent.tasks import find_tasks
from r3agent.tasks.countdown import generate
from r3agent.tasks.splits import Split, split_of
from r3agent.verifiers.countdown import countdown

SPLITS: tuple[Split, ...] = ("train", "gate", "test")


def ids(n: int, **given: int | str) -> list[str]:
    return [task.id for task in generate(n, **given)]


def reachable(numbers: tuple[Fraction, ...]) -> Iterator[Fraction]:
    """Every value that some expression of all the numbers has."""
    if len(numbers) == 1:
        yield numbers[0]
    for i, j in combinations(range(len(numbers)), 2):
        a, b = numbers[i], numbers[j]
        rest = tuple(x for k, x in enumerate(numbers) if k not in (i, j))
        for value in {a + b, a * b, a - b, b - a} | {x / y for x, y in ((a, b), (b, a)) if y}:
            yield from reachable((value, *rest))


def is_solvable(task: Task) -> bool:
    return Fraction(task.info["target"]) in reachable(tuple(map(Fraction, task.info["numbers"])))


seeds = st.integers(-(2**63), 2**63)


@given(seeds)
@settings(max_examples=20)
def test_a_seed_gives_the_same_problems_and_more_of_them_begin_alike(seed: int) -> None:
    assert ids(5, seed=seed) == ids(10, seed=seed)[:5]


def test_problems_of_a_seed_are_the_same_on_every_machine() -> None:
    assert ids(3) == ["countdown:1-9-9=1", "countdown:2-8-10=1", "countdown:1-10-10=1"]
    assert ids(3, seed=1) != ids(3)


def test_a_problem_is_the_same_task_whichever_seed_draws_it() -> None:
    one, other = ({task.id: task for task in generate(500, seed=seed)} for seed in (0, 1))
    assert (common := one.keys() & other.keys())
    assert [one[name] for name in common] == [other[name] for name in common]


@given(seeds, st.integers(2, 4))
@settings(max_examples=20)
def test_problems_are_solvable_and_distinct(seed: int, numbers: int) -> None:
    tasks = list(generate(8, seed=seed, numbers=numbers))
    assert all(map(is_solvable, tasks))
    assert len({task.id for task in tasks}) == 8


def test_same_numbers_in_another_order_are_one_problem() -> None:
    problems = [(*sorted(t.info["numbers"]), t.info["target"]) for t in generate(60, split="all", max_number=4)]
    assert len(set(problems)) == 60


@given(seeds, st.integers(2, 5), st.integers(1, 20), st.integers(20, 100))
@settings(max_examples=20)
def test_difficulty_is_kept(seed: int, numbers: int, max_number: int, max_target: int) -> None:
    (task,) = generate(1, seed=seed, split="all", numbers=numbers, max_number=max_number, max_target=max_target)
    assert len(task.info["numbers"]) == numbers
    assert all(1 <= x <= max_number for x in task.info["numbers"])
    assert 1 <= task.info["target"] <= max_target


@pytest.mark.parametrize("seed", [0, 1])
def test_splits_are_disjoint(seed: int) -> None:
    train, test = set(ids(200, split="train")), set(ids(60, seed=seed, split="test"))
    assert not train & test
    assert {split_of(task_id) for task_id in train} == {"train"}
    assert {split_of(task_id) for task_id in test} == {"test"}
    assert {split_of(task_id) for task_id in ids(100, split="all")} == {"train", "gate", "test"}


@pytest.mark.parametrize(
    ("task_id", "split"),
    [("countdown:1-9-9=1", "train"), ("countdown:3-8-9=4", "train"), ("countdown:2-4-8=6", "test")],
)
def test_split_of_a_problem_never_changes(task_id: str, split: Split) -> None:
    assert split_of(task_id) == split


def test_gold_is_an_answer_that_passes() -> None:
    for task in generate(50, numbers=4, max_number=20):
        assert task.gold is not None
        verdict = countdown(task, task.gold["content"])
        assert verdict.passed, (task, verdict)


def test_prompt_shows_the_problem() -> None:
    for task in generate(5):
        (message,) = task.messages
        assert message["role"] == "user"
        assert f"{task.info['numbers']}" in message["content"]
        assert f"equals {task.info['target']}." in message["content"]
        assert "<answer> </answer>" in message["content"]


def test_generate_yields_what_there_is() -> None:
    few = {split: set(ids(500, split=split, numbers=2, max_number=4)) for split in SPLITS}
    assert {task for tasks in few.values() for task in tasks} == set(ids(500, split="all", numbers=2, max_number=4))
    assert few == {split: set(ids(500, seed=1, split=split, numbers=2, max_number=4)) for split in SPLITS}
    assert all(0 < len(tasks) < 50 for tasks in few.values())
    with pytest.raises(ConfigError, match=r"'max_number': 1\} holds no task in split 'gate'"):
        find_tasks("countdown", 5, split="gate", numbers=2, max_number=1)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"numbers": 1}, "numbers=1"),
        ({"max_number": 0}, "max_number=0"),
        ({"max_target": 0}, "max_target=0"),
        ({"split": "dev"}, "split='dev': countdown has the splits train, gate, test, all"),
    ],
)
def test_settings_that_cannot_work_are_named(wrong: dict[str, int | str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ids(1, **wrong)
