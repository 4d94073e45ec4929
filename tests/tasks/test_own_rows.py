"""Rows of r3agent's own forms, read without settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from r3agent.errors import ConfigError
from r3agent.records.trajectory import Task
from r3agent.tasks import find_tasks, read_tasks

USER = {"role": "user", "content": "2 + 2?"}
REPLY = {"role": "assistant", "content": "4"}


def written(tmp_path: Path, *lines: Any) -> Path:
    """A task file; what is not text is written as JSON."""
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(b"\n".join(x.encode() if isinstance(x, str) else orjson.dumps(x) for x in lines) + b"\n")
    return path


def rows_of(path: Path) -> list[Task]:
    return read_tasks(str(path), split="all")


def test_prompt_form_keeps_everything_else_for_the_verifier(tmp_path: Path) -> None:
    (task,) = rows_of(written(tmp_path, {"id": 7, "prompt": "2 + 2?", "answer": 4, "level": "easy"}))
    gold = {"role": "assistant", "content": "4"}
    assert task == Task(id="7", messages=(USER,), info={"answer": 4, "level": "easy"}, gold=gold)


def test_task_form_is_the_task(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    task = Task(id="a", messages=(system, USER), tools=({"type": "function"},), info={"answer": [4]})
    assert rows_of(written(tmp_path, task.model_dump())) == [task]


def test_default_id_comes_from_what_the_policy_sees(tmp_path: Path) -> None:
    (prompt,) = rows_of(written(tmp_path, {"prompt": "2 + 2?", "answer": 4}))
    (task,) = rows_of(written(tmp_path, {"messages": [USER], "info": {"answer": "four"}}))
    (other,) = rows_of(written(tmp_path, {"prompt": "2 + 3?", "answer": 4}))
    assert prompt.id == task.id == Task(messages=(USER,)).id
    assert other.id != prompt.id


def test_line_separators_inside_text_are_no_lines(tmp_path: Path) -> None:
    tasks = rows_of(written(tmp_path, "", '{"prompt": "a\u2028b"}\r', "  ", {"prompt": "c"}, ""))
    assert [task.messages[0]["content"] for task in tasks] == ["a\u2028b", "c"]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"prompt": ', " not JSON: Expecting value: line 4 column 1"),
        ("{", " not JSON: Expecting property name enclosed in double quotes"),
        ("[1]", r"3 is \[1\]; every row must be an object"),
        ("7", "3 is 7; every row must be an object"),
        ("null", "3 is None; every row must be an object"),
        ({"answer": 4}, " not a task: messages: Field required"),
        ({"prompt": None}, " not a task: messages: Field required"),
        ({"prompt": "a", "answer": None}, "3, column 'answer' is empty"),
        ('{"prompt": "\\ud800"}', "3, column 'prompt': .* that JSON cannot hold"),
        ({"messages": []}, r" not a task: messages = \[\]: List should have at least 1 item .*; a row is \{"),
        ({"messages": [USER], "answer": 4}, " not a task: unknown key 'answer'; .*; a row is .*map other columns"),
        ({"messages": "hi"}, " not a task: messages = 'hi': Input should be a valid list"),
        ({"messages": [["hi"]]}, r" its prompt is \[\['hi'\]\]; it must be text, or messages with roles"),
        ({"messages": [{"content": "hi"}]}, " messages: {'content': 'hi'} has no role, such as user"),
        ({"messages": [{"role": "usr", "content": "hi"}]}, " messages: .* has no role, such as user"),
        ({"messages": [{"role": "user", "content": ""}]}, " messages: .* has no content"),
        ({"messages": [{"role": "user"}]}, " messages: .* has no content"),
        ({"messages": [{"role": "system", "content": "x"}]}, " its prompt ends with the system; .*end with the user"),
        ({"messages": [USER, REPLY]}, r" its prompt ends with the assistant; .*task\.params\.answer=messages\[-1\]"),
    ],
)
def test_a_line_that_is_not_a_task_is_named_by_its_number(tmp_path: Path, line: Any, fault: str) -> None:
    line = line if isinstance(line, str) else json.dumps(line)
    path = written(tmp_path, {"prompt": "fine", "messages": None}, "", line)
    with pytest.raises(ConfigError, match=rf"tasks\.jsonl:(3:)?{fault}"):
        rows_of(path)


@pytest.mark.parametrize("pair", [({"id": "a"}, {"id": "a"}), ({"id": 1}, {"id": "1"}), ({}, {})])
@pytest.mark.parametrize("n", [None, 1])
def test_an_id_is_of_one_task(tmp_path: Path, n: int | None, pair: tuple[dict[str, Any], dict[str, Any]]) -> None:
    lines = [{"prompt": "2 + 2?", "answer": 4, **named} for named in pair]
    assert len(find_tasks(str(written(tmp_path, *lines)), n, split="all")) == 1
    path = written(tmp_path, lines[0], {**lines[1], "answer": 5})
    with pytest.raises(ConfigError, match=r"task id '\w+' stands for two tasks that differ; ids must be unique"):
        find_tasks(str(path), n, split="all")


def test_source_by_file_name_takes_n_or_all(tmp_path: Path) -> None:
    source = str(written(tmp_path, *({"id": name, "prompt": name} for name in "abc")))
    assert [task.id for task in find_tasks(source, split="all")] == ["a", "b", "c"]
    assert len(find_tasks(source, 2, seed=5, split="all")) == 2


def test_a_file_without_tasks_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no task"):
        find_tasks(str(written(tmp_path, "")))


def test_a_file_of_other_columns_is_told_how_to_map_them(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"tasks\.jsonl has no column 'prompt'; .*--set task\.params\.prompt=question"
    ):
        find_tasks(str(written(tmp_path, {"question": "2 + 2?"})))


def test_rows_of_messages_and_an_answer_get_a_setting_that_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "1 + 1?"}], "answer": "2"}')
    with pytest.raises(ConfigError, match=r"e\.g\. --set task\.params\.prompt=messages"):
        read_tasks(str(path), split="all")
    (task,) = read_tasks(str(path), split="all", prompt="messages")
    assert task.info == {"answer": "2"}
