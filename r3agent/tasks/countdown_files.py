"""Countdown problems from a file in the form of the public data set (Jiayi-Pan/Countdown-Tasks-3to4): the columns
`nums` and `target`, as JSON lines or Parquet. `countdown:problems.parquet` names one.

The tasks are those that `countdown.py` makes: the same problem has the same id, wherever it comes from, and is on the
same side of the splits; problems that a file repeats are one task.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from r3agent.errors import ConfigError
from r3agent.records.trajectory import Task
from r3agent.tasks.countdown import make_task, problem_id, solve
from r3agent.tasks.rows import file_rows
from r3agent.tasks.splits import draw
from r3agent.verifiers.countdown import MAX_NUMBER_DIGITS

KINDS = (".jsonl", ".parquet")


class Problem(NamedTuple):
    """A row of the file."""

    id: str
    given: list[int]
    target: int


def load(n: int | None, *, seed: int, split: str, name: str, solved: bool = False) -> Iterator[Task]:
    """The problems of a file, `n` of them drawn by seed.

    Args:
        name: a `.jsonl` or `.parquet` file.
        solved: look for a gold answer too, which takes milliseconds a problem of four numbers and seconds of six.

    Raises:
        ConfigError: the file is missing, of another kind, or a row is not a problem.
    """
    problems = {problem.id: problem for problem in _problems(name)}
    for _, given, target in draw(problems.values(), n, seed=seed, split=split):
        yield make_task(given, target, solve(given, target) if solved else None)


def _problems(path: str) -> Iterator[Problem]:
    if not path.endswith(KINDS):
        raise ConfigError(f"countdown:{path}: the file is none of {', '.join(KINDS)}")
    for where, row in file_rows(path).rows:
        try:
            yield _problem(row)
        except ValueError as error:
            raise ConfigError(
                f'{where} is not a problem: {error}; a row is {{"nums": [1, 2, 3], "target": 6}}'
            ) from error


def _problem(row: dict[str, Any]) -> Problem:
    if not {"nums", "target"} <= row.keys():
        raise ValueError("it has not the columns nums and target")
    given, target = row["nums"], row["target"]
    if not isinstance(given, list) or len(given) < 2 or not all(_is_number(x) and x >= 0 for x in given):
        raise ValueError(
            f"nums = {given!r}: at least 2 whole numbers of at most {MAX_NUMBER_DIGITS} digits, none negative"
        )
    if not _is_number(target):
        raise ValueError(f"target = {target!r}: a whole number")
    return Problem(problem_id(given, target), given, target)


def _is_number(value: object) -> bool:
    return type(value) is int and abs(value) < 10**MAX_NUMBER_DIGITS
