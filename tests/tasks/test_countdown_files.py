from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from r3agent.errors import ConfigError
from r3agent.tasks import default_verifier, find_tasks
from r3agent.tasks.countdown import generate, make_task, solve
from r3agent.tasks.splits import split_of
from r3agent.verifiers.countdown import countdown

ROWS = [
    {"nums": [44, 19, 35], "target": 98},
    {"nums": [63, 95, 96], "target": 64},
    {"nums": [3, 1, 7, 2], "target": 21},
]
"""The first two begin the public set; the third is here for a fourth number."""


def json_file(tmp_path: Path, *rows: Any) -> str:
    path = tmp_path / "problems.jsonl"
    path.write_bytes(b"\n".join(row.encode() if isinstance(row, str) else orjson.dumps(row) for row in rows) + b"\n")
    return f"countdown:{path}"


def parquet_file(tmp_path: Path, rows: list[dict[str, Any]]) -> str:
    path = tmp_path / "problems.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return f"countdown:{path}"


def test_both_forms_hold_the_tasks_that_countdown_makes(tmp_path: Path) -> None:
    expected = [make_task(row["nums"], row["target"]) for row in ROWS]
    assert find_tasks(json_file(tmp_path, *ROWS, ""), split="all") == expected
    assert find_tasks(parquet_file(tmp_path, ROWS), split="all") == expected
    assert expected[0].gold is None


def test_tinyzero_s_rows_hold_the_same_tasks(tmp_path: Path) -> None:
    rows = [{"reward_model": {"ground_truth": {"numbers": row["nums"], "target": row["target"]}}} for row in ROWS]
    assert find_tasks(parquet_file(tmp_path, rows), split="all") == find_tasks(json_file(tmp_path, *ROWS), split="all")


def test_a_generated_problem_is_the_same_task_in_a_file(tmp_path: Path) -> None:
    made = list(generate(20, split="all"))
    rows = [{"nums": task.info["numbers"][::-1], "target": task.info["target"]} for task in made]
    assert {task.id for task in find_tasks(json_file(tmp_path, *rows), split="all")} == {task.id for task in made}


def test_problems_that_repeat_in_any_order_are_one_task(tmp_path: Path) -> None:
    repeated = [{"nums": [3, 2, 1], "target": 6}, {"nums": [1, 2, 3], "target": 6}, {"nums": [1, 2, 3], "target": 5}]
    assert len(find_tasks(json_file(tmp_path, *repeated), split="all")) == 2


def test_splits_are_disjoint_and_drawn_by_seed(tmp_path: Path) -> None:
    source = parquet_file(tmp_path, [{"nums": [1, 2, n], "target": n} for n in range(1, 200)])
    splits = {name: {task.id for task in find_tasks(source, split=name)} for name in ("train", "gate", "test")}
    assert sum(map(len, splits.values())) == len(set.union(*splits.values())) == 199
    assert all(split_of(task_id) == name for name, ids in splits.items() for task_id in ids)
    assert find_tasks(source, 9, seed=1) == find_tasks(source, 9, seed=1) != find_tasks(source, 9, seed=2)


def test_columns_that_are_not_needed_are_not_looked_at(tmp_path: Path) -> None:
    (task,) = find_tasks(parquet_file(tmp_path, [{"id": 1, **ROWS[0], "note": "x"}]), split="all")
    assert task.info == {"numbers": [44, 19, 35], "target": 98}


def test_gold_is_looked_for_when_asked(tmp_path: Path) -> None:
    tasks = find_tasks(json_file(tmp_path, *ROWS, {"nums": [1, 1], "target": 99}), split="all", solved=True)
    *solvable, impossible = tasks
    assert impossible.gold is None
    for task in solvable:
        assert task.gold is not None
        assert countdown(task, task.gold["content"]).passed


@given(st.lists(st.integers(0, 20), min_size=2, max_size=4), st.integers(-5, 60))
def test_what_is_solved_is_solved(numbers: list[int], target: int) -> None:
    solution = solve(numbers, target)
    if solution is not None:
        assert countdown(make_task(numbers, target), f"<answer>{solution}</answer>").passed


def test_every_generated_problem_is_solved() -> None:
    assert all(solve(task.info["numbers"], task.info["target"]) for task in generate(40, numbers=4, split="all"))


def test_the_verifier_is_countdown_s(tmp_path: Path) -> None:
    assert default_verifier(json_file(tmp_path, *ROWS)) == "countdown"


@pytest.mark.parametrize(
    "row",
    [
        {"numbers": [1, 2], "target": 3},
        {"nums": [1, 2]},
        {"nums": [1], "target": 1},
        {"nums": "12", "target": 3},
        {"nums": [1, -2], "target": 3},
        {"nums": [1, 2.0], "target": 3},
        {"nums": [True, 2], "target": 3},
        {"nums": [1, 10**9], "target": 3},
        {"nums": [1, 2], "target": "3"},
        {"nums": [1, 2], "target": None},
    ],
)
def test_a_row_that_is_no_problem_is_named_by_its_line(tmp_path: Path, row: Any) -> None:
    with pytest.raises(ConfigError, match=r'problems\.jsonl:2 is not a problem: .*; a row is \{"nums"'):
        find_tasks(json_file(tmp_path, ROWS[0], row))


@pytest.mark.parametrize("line", ["[1]", "7", "{"])
def test_a_line_that_is_no_row_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match=r"problems\.jsonl:2"):
        find_tasks(json_file(tmp_path, ROWS[0], line))


def test_a_parquet_file_of_something_else_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="row 1 is not a problem: it has not the columns nums and target"):
        find_tasks(parquet_file(tmp_path, [{"nums": [1, 2]}]))
    (tmp_path / "problems.parquet").write_bytes(b"not parquet")
    with pytest.raises(ConfigError, match=r"problems\.parquet: .*[Pp]arquet"):
        find_tasks(f"countdown:{tmp_path}/problems.parquet")


def test_a_file_that_is_missing_or_of_another_kind_is_named(tmp_path: Path) -> None:
    for name in ("none.jsonl", "none.parquet"):
        with pytest.raises(ConfigError, match=rf"{name}: there is no such file"):
            find_tasks(f"countdown:{tmp_path / name}")
    with pytest.raises(ConfigError, match=r"problems\.csv: the file is none of \.jsonl, "):
        find_tasks("countdown:problems.csv")


def test_settings_of_the_generator_are_not_those_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'task\.params\.max_number'; known are solved"):
        find_tasks(json_file(tmp_path, *ROWS), max_number=9)
