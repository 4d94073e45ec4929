"""Shapes of APIGen's format and its relatives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from r3agent.errors import ConfigError
from r3agent.records.trajectory import Task
from r3agent.tasks import find_tasks
from r3agent.verifiers import Answer, find_verifier

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": ["integer", "null"], "default": 3},
        "hours": {"type": "array", "items": {"type": "number"}},
    },
    "required": ["city"],
}
PYTHON = {
    "city": {"type": "str"},
    "days": {"type": "int, optional", "default": 3},
    "hours": {"type": "List[float], optional"},
}
SHAPES = {
    "python": {"name": "weather", "parameters": PYTHON},
    "schema": {"name": "weather", "parameters": SCHEMA},
    "openai": {"type": "function", "function": {"name": "weather", "description": None, "parameters": SCHEMA}},
}
CALL = {"name": "weather", "arguments": {"city": "Rome"}}
CALLS = {
    "apigen": CALL,
    "text": {**CALL, "arguments": json.dumps(CALL["arguments"])},
    "openai": {"id": "c", "type": "function", "function": {**CALL, "arguments": json.dumps(CALL["arguments"])}},
}


def one(path: Path, tools: Any, answers: Any, **more: Any) -> Task:
    row = {"id": 1, "query": "?", "tools": tools, "answers": answers, **more}
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    else:
        path.write_text(json.dumps([row]) if path.suffix == ".json" else json.dumps(row), encoding="utf-8-sig")
    (task,) = find_tasks(f"xlam:{path}", split="all", calls="text")
    return task


def passes(task: Task, *, name: str = "weather", **arguments: Any) -> bool:
    return find_verifier("function_call")(task, Answer(json.dumps([{"name": name, "arguments": arguments}]))).passed


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("call", CALLS)
def test_tools_and_calls_of_any_shape_make_the_same_task(shape: str, call: str, tmp_path: Path) -> None:
    tools, answers = [SHAPES[shape]], [CALLS[call]]
    for ending in ("jsonl", "json", "parquet"):
        for task in (
            one(tmp_path / f"a.{ending}", tools, answers),
            one(tmp_path / f"a.{ending}", json.dumps(tools), json.dumps(answers)),
        ):
            assert passes(task, city="Rome")
            assert passes(task, city="Rome", days=3)
            assert not passes(task, city="Rome", days=4)
            assert not passes(task, city="Paris")
            types = task.info["functions"]["weather"]["types"]
            assert types == {"city": ["string"], "days": ["integer"], "hours": ["array"]}


def test_a_json_schema_is_offered_as_it_is(tmp_path: Path) -> None:
    one(tmp_path / "a.jsonl", [SHAPES["openai"]], [CALL])
    (task,) = find_tasks(f"xlam:{tmp_path}/a.jsonl", split="all")
    assert task.tools == (
        {"type": "function", "function": {"name": "weather", "description": "", "parameters": SCHEMA}},
    )


@pytest.mark.parametrize(
    ("tools", "answers", "says"),
    [
        ([7], [CALL], r"a\.jsonl:1: not in the format of APIGen: tools\.0: must be an object with a name"),
        (
            [SHAPES["python"]],
            [{**CALL, "arguments": {"city": 2**64}}],
            r"city\[0\] = 1844.*: an integer of more than 64",
        ),
        (
            [SHAPES["python"]],
            [{**CALL, "arguments": "{"}],
            r"a\.jsonl:1: not in the format of APIGen: answers\.0: Expecting",
        ),
        ("[{", [CALL], r"a\.jsonl:1: not in the format of APIGen: tools: Expecting property name"),
    ],
)
def test_a_row_of_another_shape_is_refused_in_one_line(tools: Any, answers: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        one(tmp_path / "a.jsonl", tools, answers)
    assert "\n" not in str(error.value)
