from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from r3agent.errors import ConfigError
from r3agent.records.trajectory import Task
from r3agent.tasks import find_tasks
from r3agent.tasks.jsonl import load_jsonl

USER = {"role": "user", "content": "2 + 2?"}


def written(tmp_path: Path, *lines: Any) -> Path:
    """A task file; what is not text is written as JSON."""
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(b"\n".join(x.encode() if isinstance(x, str) else orjson.dumps(x) for x in lines) + b"\n")
    return path


def test_prompt_form_keeps_everything_else_for_the_verifier(tmp_path: Path) -> None:
    (task,) = load_jsonl(written(tmp_path, {"id": 7, "prompt": "2 + 2?", "answer": 4, "level": "easy"}))
    gold = {"role": "assistant", "content": "4"}
    assert task == Task(id="7", messages=(USER,), info={"answer": 4, "level": "easy"}, gold=gold)


def test_task_form_is_the_task(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    task = Task(id="a", messages=(system, USER), tools=({"type": "function"},), info={"answer": [4]})
    assert list(load_jsonl(written(tmp_path, task.model_dump()))) == [task]


def test_default_id_comes_from_what_the_policy_sees(tmp_path: Path) -> None:
    (prompt,) = load_jsonl(written(tmp_path, {"prompt": "2 + 2?", "answer": 4}))
    (task,) = load_jsonl(written(tmp_path, {"messages": [USER], "info": {"answer": "four"}}))
    (other,) = load_jsonl(written(tmp_path, {"prompt": "2 + 3?", "answer": 4}))
    assert prompt.id == task.id == Task(messages=(USER,)).id
    assert other.id != prompt.id


def test_blank_lines_and_line_separators_inside_text_are_no_lines(tmp_path: Path) -> None:
    tasks = list(load_jsonl(written(tmp_path, "", '{"prompt": "a\u2028b"}\r', "  ", {"prompt": "c"}, "")))
    assert [task.messages[0]["content"] for task in tasks] == ["a\u2028b", "c"]


@pytest.mark.parametrize(
    "line",
    [
        '{"prompt": ',
        "[1]",
        "7",
        "null",
        {"answer": 4},
        {"messages": []},
        {"prompt": 7},
        {"prompt": None},
        {"messages": [USER], "answer": 4},
        '{"prompt": "\\ud800"}',
    ],
)
def test_a_line_that_is_not_a_task_is_named_by_its_number(tmp_path: Path, line: Any) -> None:
    path = written(tmp_path, {"prompt": "fine"}, "", line)
    with pytest.raises(ConfigError, match=r'tasks\.jsonl:3: not a task: (?s:.*); a line is \{"prompt"'):
        list(load_jsonl(path))


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", r"no JSON \(.*column.*\)"),
        ("[1]", r"\[1\] is no object"),
        ({"messages": "hi"}, r"messages = 'hi': Input should be a valid list"),
        ({"messages": [["hi"]]}, r"messages\.0 = \['hi'\]: Input should be a valid dictionary"),
        ({"messages": [{"content": "hi"}]}, r"messages: {'content': 'hi'} has no role, such as user"),
    ],
)
def test_line_that_is_not_a_task_is_told_its_fault(tmp_path: Path, line: Any, fault: str) -> None:
    with pytest.raises(ConfigError, match=rf"tasks\.jsonl:1: not a task: {fault}; a line is"):
        list(load_jsonl(written(tmp_path, line)))


@pytest.mark.parametrize("pair", [({"id": "a"}, {"id": "a"}), ({"id": 1}, {"id": "1"}), ({}, {})])
@pytest.mark.parametrize("n", [None, 1])
def test_an_id_is_of_one_task(tmp_path: Path, n: int | None, pair: tuple[dict[str, Any], dict[str, Any]]) -> None:
    lines = [{"prompt": "2 + 2?", "answer": 4, **named} for named in pair]
    assert len(find_tasks(str(written(tmp_path, *lines)), n, split="all")) == 1
    path = written(tmp_path, lines[0], {**lines[1], "answer": 5})
    with pytest.raises(ConfigError, match=r"task id '\w+' stands for two tasks that differ; ids must be unique"):
        find_tasks(str(path), n, split="all")


def test_a_file_that_is_missing_or_a_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.jsonl: No such file"):
        list(load_jsonl(tmp_path / "none.jsonl"))
    with pytest.raises(ConfigError, match="Is a directory"):
        list(load_jsonl(tmp_path))


def test_source_by_file_name_takes_n_or_all(tmp_path: Path) -> None:
    source = str(written(tmp_path, *({"id": name, "prompt": name} for name in "abc")))
    assert [task.id for task in find_tasks(source, split="all")] == ["a", "b", "c"]
    assert len(find_tasks(source, 2, seed=5, split="all")) == 2


def test_a_file_without_tasks_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no task"):
        find_tasks(str(written(tmp_path, "")))


def test_a_file_of_other_columns_is_told_how_to_map_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tasks\.jsonl:1: (?s:.*)--set task\.params\.prompt=question"):
        find_tasks(str(written(tmp_path, {"question": "2 + 2?"})))
