"""Countdown problems from a file in the form of the public data set (Jiayi-Pan/Countdown-Tasks-3to4): the columns
`nums` and `target`, as JSON lines or Parquet. `countdown:problems.parquet` names one.

The tasks are those that `countdown.py` makes: the same problem has the same id, wherever it comes from, and is on the
same side of the splits; problems that a file repeats are one task.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from r3agent.errors import ConfigError
from r3agent.imports import require_package
from r3agent.tasks.countdown import make_task, problem_id, solve
from r3agent.tasks.splits import draw
from r3agent.trajectory import Task
from r3agent.verifiers.countdown import MAX_NUMBER_DIGITS

COLUMNS = ("nums", "target")


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
    problems = {problem.id: problem for problem in _problems(Path(name))}
    for _, given, target in draw(problems.values(), n, seed=seed, split=split):
        yield make_task(given, target, solve(given, target) if solved else None)


def _problems(path: Path) -> Iterator[Problem]:
    kinds = {".jsonl": _json_rows, ".parquet": _parquet_rows}
    if path.suffix not in kinds:
        raise ConfigError(f"countdown:{path}: the file is none of {', '.join(kinds)}")
    try:
        for number, row in enumerate(kinds[path.suffix](path), start=1):
            try:
                yield _problem(orjson.loads(row) if isinstance(row, bytes) else row)
            except ValueError as error:
                raise ConfigError(
                    f'{path}: row {number} is not a problem: {error}; a row is {{"nums": [1, 2, 3], "target": 6}}'
                ) from error
    except OSError as error:
        raise ConfigError(f"countdown:{path}: {error.strerror or error}; name a file of problems") from error


def _json_rows(path: Path) -> Iterator[Any]:
    with path.open("rb") as lines:
        yield from (line for line in lines if line.strip())


def _parquet_rows(path: Path) -> Iterable[Any]:
    require_package("pyarrow", f"countdown:{path}")
    from pyarrow import ArrowInvalid, parquet

    try:
        file = parquet.ParquetFile(path)
        present = [column for column in COLUMNS if column in file.schema_arrow.names]
        return chain.from_iterable(batch.to_pylist() for batch in file.iter_batches(columns=present))
    except ArrowInvalid as error:
        raise ConfigError(f"countdown:{path}: {error}") from error


def _problem(row: Any) -> Problem:
    if not isinstance(row, dict) or any(column not in row for column in COLUMNS):
        raise ValueError(f"it has not the columns {' and '.join(COLUMNS)}")
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
