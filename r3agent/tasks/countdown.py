"""Countdown: combine the given numbers, each exactly once, into an expression that equals the target.

`generate` makes solvable problems from a seed, with difficulty settings and disjoint splits. `load` reads them from a
file in the format of the public data set (Jiayi-Pan/Countdown-Tasks-3to4): the columns `nums` and `target`, in JSON or
Parquet, or TinyZero's, which has them in `reward_model.ground_truth`. A problem's id consists of its sorted numbers and
its target, so the same problem in another order or from another source is the same task and belongs to the same split.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import permutations
from typing import Any, NamedTuple

from r3agent.errors import ConfigError
from r3agent.records.trajectory import Task
from r3agent.tasks.rows import file_rows
from r3agent.tasks.splits import Split, distinct, draw
from r3agent.tasks.text_files import ending
from r3agent.verifiers.countdown import MAX_NUMBER_DIGITS
from r3agent.verifiers.countdown_steps import result

PROMPT = (
    "Using the numbers {numbers}, create an equation that equals {target}. "
    "You can use the basic operations + - * / and parentheses, and each number must be used exactly once. "
    "Return the expression in <answer> </answer> tags."
)

FILE_ENDINGS = (".jsonl", ".ndjson", ".json", ".parquet")

MAX_FRUITLESS = 20_000
"""Number of consecutive duplicates after which the problems count as exhausted."""


class FileProblem(NamedTuple):
    """Problem in a row of a file."""

    id: str
    given: list[int]
    target: int


class Step(NamedTuple):
    """One operation on two of the numbers, and the numbers left to combine."""

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
    """Yield `n` distinct solvable problems, or all that the settings allow.

    Args:
        numbers: how many numbers a problem has.
        max_number: largest number; the smallest is 1.
        max_target: largest target; the smallest is 1.

    Raises:
        ConfigError: as `distinct`, or a setting is too small.
    """
    if numbers < 2 or max_number < 1 or max_target < 1:
        raise ConfigError(f"{numbers=}, {max_number=}, {max_target=}: at least 2 numbers, and limits of at least 1")
    return distinct(
        _random_problems(random.Random(f"countdown:{seed}"), numbers, max_number, max_target),
        n,
        split=split,
        max_fruitless=MAX_FRUITLESS,
        source="countdown",
    )


def load(n: int | None, *, seed: int, split: str, name: str, solved: bool = False) -> Iterator[Task]:
    """Yield the problems of a file, `n` of them drawn by seed.

    Args:
        name: `.jsonl` or `.parquet` file.
        solved: also search for gold answers; this takes milliseconds for four numbers and seconds for six.

    Raises:
        ConfigError: the file is missing, of another type, or a row is not a problem.
    """
    problems = {problem.id: problem for problem in _problems(name)}
    for _, given, target in draw(problems.values(), n, seed=seed, split=split):
        yield make_task(given, target, solve(given, target) if solved else None)


def problem_id(given: list[int], target: int) -> str:
    """Return the id of a problem, independent of the order of its numbers."""
    return f"countdown:{'-'.join(map(str, sorted(given)))}={target}"


def make_task(given: list[int], target: int, solution: str | None = None) -> Task:
    """Make the task of a problem, with a gold answer if a solution is given."""
    return Task(
        id=problem_id(given, target),
        messages=({"role": "user", "content": PROMPT.format(numbers=given, target=target)},),
        info={"numbers": given, "target": target},
        gold=None if solution is None else {"role": "assistant", "content": f"<answer> {solution} </answer>"},
    )


def steps(given: tuple[int, ...]) -> Iterator[Step]:
    """Yield every operation on two of the numbers whose result is a number of the game."""
    for i, j in permutations(range(len(given)), 2):
        left, right = given[i], given[j]
        rest = tuple(x for k, x in enumerate(given) if k not in (i, j))
        for op in "+*-/" if i < j else "-/":
            if isinstance(value := result(left, op, right), int):
                yield Step(left, op, right, value, rest)


def solve(given: list[int], target: int) -> str | None:
    """Return an expression that equals the target, or `None` if none has only positive integers as intermediates."""
    return _solve([(number, str(number)) for number in given], target, set())


def _solve(pool: list[tuple[int, str]], target: int, tried: set[tuple[int, ...]]) -> str | None:
    values = tuple(value for value, _ in pool)
    if len(pool) == 1:
        return pool[0][1] if values[0] == target else None
    if (known := tuple(sorted(values))) in tried:
        return None
    tried.add(known)
    for step in steps(values):
        found = _solve(_apply_step(pool, step), target, tried)
        if found is not None:
            return found
    return None


def _apply_step(pool: list[tuple[int, str]], step: Step) -> list[tuple[int, str]]:
    """Apply an operation to two of the values, and return the remaining values with their expressions."""
    rest, sides = [*pool], list[str]()
    for side in (step.left, step.right):
        used = next(entry for entry in rest if entry[0] == side)
        rest.remove(used)
        sides.append(used[1])
    return [(step.value, f"({sides[0]} {step.op} {sides[1]})"), *rest]


def _random_problems(rng: random.Random, numbers: int, max_number: int, max_target: int) -> Iterator[Task | None]:
    """Yield problems without end, and `None` for one whose target is too large."""
    while True:
        given = [rng.choice(range(1, max_number + 1)) for _ in range(numbers)]
        target = _random_play(given, rng)
        if target > max_target:
            yield None
            continue
        # Every seed that draws a problem makes the same task of it, so that a later round does not seem to correct it.
        given = random.Random(problem_id(given, target)).sample(sorted(given), numbers)
        yield make_task(given, target, solve(given, target))


def _random_play(given: list[int], rng: random.Random) -> int:
    """Combine the numbers by random operations; return the resulting value."""
    values = [*given]
    while len(values) > 1:
        step = rng.choice(list(steps(tuple(values))))
        values = [step.value, *step.rest]
    return values[0]


def _problems(path: str) -> Iterator[FileProblem]:
    if ending(path) not in FILE_ENDINGS:
        raise ConfigError(f"countdown:{path}: the file is none of {', '.join(FILE_ENDINGS)}")
    for where, row, _ in file_rows(path).rows:
        try:
            yield _problem(row)
        except ValueError as error:
            raise ConfigError(
                f'{where} is not a problem: {error}; a row is {{"nums": [1, 2, 3], "target": 6}}'
            ) from error


def _problem(row: dict[str, Any]) -> FileProblem:
    if isinstance(verl := row.get("reward_model"), dict) and isinstance(truth := verl.get("ground_truth"), dict):
        row = {"nums": truth.get("numbers"), "target": truth.get("target")}
    if not {"nums", "target"} <= row.keys():
        raise ValueError("it has not the columns nums and target")
    given, target = row["nums"], row["target"]
    if not isinstance(given, list) or len(given) < 2 or not all(_is_number(x) and x >= 0 for x in given):
        raise ValueError(
            f"nums = {given!r}: at least 2 whole numbers of at most {MAX_NUMBER_DIGITS} digits, none negative"
        )
    if not _is_number(target):
        raise ValueError(f"target = {target!r}: a whole number")
    return FileProblem(problem_id(given, target), given, target)


def _is_number(value: object) -> bool:
    return type(value) is int and abs(value) < 10**MAX_NUMBER_DIGITS
