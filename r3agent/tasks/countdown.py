"""Countdown: combine the given numbers, each exactly once, into an expression that equals the target.

`generate` makes solvable problems from a seed, with difficulty settings and disjoint splits. A problem's id is
its sorted numbers and its target, so the same problem in another order is the same task and cannot sit on both
sides of a split.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import permutations
from typing import NamedTuple

from r3agent.errors import ConfigError
from r3agent.records.trajectory import Task
from r3agent.tasks.splits import Split, distinct

PROMPT = (
    "Using the numbers {numbers}, create an equation that equals {target}. "
    "You can use the basic operations + - * / and parentheses, and each number must be used exactly once. "
    "Return the expression in <answer> </answer> tags."
)

MAX_FRUITLESS = 20_000
"""Problems drawn in a row without a new one, after which there are taken to be no more."""


class Step(NamedTuple):
    """One operation on two of the numbers, and what is left to combine."""

    left: int
    op: str
    right: int
    value: int
    rest: tuple[int, ...]


def generate(
    n: int | None,
    *,
    seed: int = 0,
    split: Split = "train",
    numbers: int = 3,
    max_number: int = 10,
    max_target: int = 60,
) -> Iterator[Task]:
    """`n` distinct solvable problems.

    Args:
        numbers: how many numbers a problem gives.
        max_number: they are drawn from 1 to this.
        max_target: targets are between 1 and this.

    Raises:
        ConfigError: as `distinct`, or the settings make no problem.
    """
    if numbers < 2 or max_number < 1 or max_target < 1:
        raise ConfigError(f"{numbers=}, {max_number=}, {max_target=}: at least 2 numbers, and limits of at least 1")
    problems = _random_problems(random.Random(f"countdown:{seed}"), numbers, max_number)
    return distinct(
        (task if task.info["target"] <= max_target else None for task in problems),
        n,
        split=split,
        max_fruitless=MAX_FRUITLESS,
        source="countdown",
        settings=f"{numbers=}, {max_number=}, {max_target=}",
    )


def problem_id(given: list[int], target: int) -> str:
    return f"countdown:{'-'.join(map(str, sorted(given)))}={target}"


def make_task(given: list[int], target: int, solution: str | None = None) -> Task:
    return Task(
        id=problem_id(given, target),
        messages=({"role": "user", "content": PROMPT.format(numbers=given, target=target)},),
        info={"numbers": given, "target": target},
        gold=None if solution is None else {"role": "assistant", "content": f"<answer> {solution} </answer>"},
    )


def steps(given: tuple[int, ...]) -> Iterator[Step]:
    """Every operation on two of the numbers whose result is a positive integer."""
    for i, j in permutations(range(len(given)), 2):
        left, right = given[i], given[j]
        rest = tuple(x for k, x in enumerate(given) if k not in (i, j))
        if i < j:
            yield Step(left, "+", right, left + right, rest)
            yield Step(left, "*", right, left * right, rest)
        if left > right:
            yield Step(left, "-", right, left - right, rest)
        if right > 0 and left % right == 0:
            yield Step(left, "/", right, left // right, rest)


def solve(given: list[int], target: int) -> str | None:
    """An expression that equals the target, or `None` where positive integers on the way do not do."""
    return _solve([(number, str(number)) for number in given], target, set())


def _solve(pool: list[tuple[int, str]], target: int, tried: set[tuple[int, ...]]) -> str | None:
    values = tuple(value for value, _ in pool)
    if len(pool) == 1:
        return pool[0][1] if values[0] == target else None
    if (known := tuple(sorted(values))) in tried:
        return None
    tried.add(known)
    for step in steps(values):
        found = _solve(_played(pool, step), target, tried)
        if found is not None:
            return found
    return None


def _played(pool: list[tuple[int, str]], step: Step) -> list[tuple[int, str]]:
    """Values and their expressions after an operation on two of them."""
    rest, sides = [*pool], list[str]()
    for side in (step.left, step.right):
        used = next(entry for entry in rest if entry[0] == side)
        rest.remove(used)
        sides.append(used[1])
    return [(step.value, f"({sides[0]} {step.op} {sides[1]})"), *rest]


def _random_problems(rng: random.Random, numbers: int, max_number: int) -> Iterator[Task]:
    while True:
        given = [rng.choice(range(1, max_number + 1)) for _ in range(numbers)]
        yield make_task(given, *_random_play(given, rng))


def _random_play(given: list[int], rng: random.Random) -> tuple[int, str]:
    """Where random operations on the numbers lead, and the expression that they make."""
    pool = [(number, str(number)) for number in given]  # values, and the expressions that have them
    while len(pool) > 1:
        pool = _played(pool, rng.choice(list(steps(tuple(value for value, _ in pool)))))
    return pool[0]
