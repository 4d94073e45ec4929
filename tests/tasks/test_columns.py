"""Rows as other trainers write them, read by settings or refused with those that help."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from r3agent.errors import ConfigError
from r3agent.records.trajectory import Task
from r3agent.tasks import read_tasks

USER = {"role": "user", "content": "1 + 1?"}
SYSTEM = {"role": "system", "content": "Be brief."}
REPLY = {"role": "assistant", "content": "It is 2."}
SOLUTION = "1 + 1 = <<1+1=2>>2.\n#### 2"
VERL = {"data_source": "x", "prompt": [USER], "reward_model": {"style": "rule", "ground_truth": "2"}}
SHAREGPT = [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "It is 2."}]


def file_of(tmp_path: Path, row: dict[str, Any], ending: str) -> str:
    path = tmp_path / f"rows{ending}"
    if ending == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    else:
        path.write_text(json.dumps([row]) if ending == ".json" else json.dumps(row))
    return str(path)


def one(tmp_path: Path, row: dict[str, Any], ending: str = ".jsonl", **params: Any) -> Task:
    (task,) = read_tasks(file_of(tmp_path, row, ending), split="all", **params)
    return task


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize(
    ("row", "params", "answer"),
    [
        ({"prompt": [USER], "answer": "2"}, {}, "2"),
        (VERL, {}, "2"),
        (VERL, {"answer": "reward_model.ground_truth"}, "2"),
        (VERL, {"answer": "{{ reward_model['ground_truth'] }}", "gold": "reward_model.ground_truth"}, "2"),
        ({"prompt": [USER], "completion": [REPLY]}, {}, "It is 2."),
        ({"prompt": "1 + 1?", "completion": "2"}, {}, "2"),
        ({"messages": [USER, REPLY]}, {"prompt": "messages", "answer": "messages[-1].content"}, "It is 2."),
        (
            {"messages": [USER, REPLY]},
            {"prompt": "messages", "gold": "messages[-1]", "answer": "messages[1]"},
            "It is 2.",
        ),
        ({"conversations": SHAREGPT}, {"prompt": "conversations", "answer": "conversations[-1].value"}, "It is 2."),
        (
            {"instruction": "1 +", "input": "1?", "output": "2"},
            {"prompt": "{{ instruction }} {{ input }}", "answer": "output"},
            "2",
        ),
        ({"prompt": "1 + 1?", "extra": json.dumps({"level": [{"truth": 2}]})}, {"answer": "extra.level[0].truth"}, 2),
        ({"prompt": json.dumps([USER]), "answer": "2"}, {}, "2"),
        ({"question": "1 + 1?", "answer": SOLUTION}, {"prompt": "question"}, "2"),
        ({"question": "1 + 1?", "answer": SOLUTION.replace("\n", " ")}, {"prompt": "question"}, "2"),
        ({"prompt": "1 + 1?", "completion": "2", "label": True}, {"answer": "completion"}, "2"),
        ({"question": "1 + 1?", "answer": SOLUTION}, {"prompt": "question", "answer": "{{ answer }}"}, SOLUTION),
    ],
)
def test_rows_of_other_trainers_become_tasks(
    row: dict[str, Any], params: dict[str, Any], answer: Any, ending: str, tmp_path: Path
) -> None:
    task = one(tmp_path, row, ending, **params)
    assert task.messages == (USER,)
    assert task.info["answer"] == answer
    assert task.gold == {"role": "assistant", "content": str(answer)}


def test_an_image_that_a_task_of_text_does_not_need_is_left_out(tmp_path: Path) -> None:
    row = {"prompt": "1 + 1?", "answer": "2", "picture": {"bytes": b"\xff\xd8\xff", "path": "a.jpg"}}
    assert one(tmp_path, row, ".parquet").info == {"answer": "2"}
    with pytest.raises(ConfigError, match=r"row 1, column 'picture': .*a bytes that JSON cannot hold"):
        one(tmp_path, row, ".parquet", info=["picture"])


def test_the_first_of_accepted_answers_is_the_gold_one(tmp_path: Path) -> None:
    for ending in (".json", ".parquet"):
        task = one(tmp_path, {"prompt": "?", "answer": ["2", "two"]}, ending)
        assert (task.info["answer"], task.gold) == (["2", "two"], {"role": "assistant", "content": "2"})
        assert one(tmp_path, {"prompt": "?", "answer": [SOLUTION, SOLUTION]}, ending).info["answer"] == ["2", "2"]
    (made,) = [one(tmp_path, {"prompt": "?", "answer": {"a": [1]}})]
    assert made.gold == {"role": "assistant", "content": '{"a": [1]}'}


@pytest.mark.parametrize(
    ("row", "params", "says"),
    [
        (
            {"messages": [SYSTEM, USER, REPLY]},
            {},
            r"rows\.jsonl:1: its prompt ends with the assistant; .*messages\[-1\]\.content",
        ),
        ({"messages": [USER, REPLY], "answer": "2"}, {"prompt": "messages"}, "ends with the assistant"),
        ({"messages": [REPLY]}, {"prompt": "messages", "gold": "messages[-1]"}, "ends with the assistant"),
        (
            {"conversations": SHAREGPT},
            {"prompt": "conversations"},
            r"ends with the assistant; .*task\.params\.answer=conversations\[-1\]\.value",
        ),
        (
            {"conversations": SHAREGPT},
            {},
            r"no column 'prompt'; .*--set task\.params\.answer=conversations\[-1\]\.value",
        ),
        ({"instruction": "a", "output": "b"}, {}, r"no column 'prompt'; .*--set task\.params\.answer=output"),
        ({"nums": [1, 2], "target": 3}, {}, "name it as countdown:FILE"),
        ({"query": "a", "tools": [], "answers": []}, {}, "name it as xlam:FILE"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, {}, r"holds preferences .*task\.params\.answer=chosen"),
        ({"prompt": "a", "completion": "b", "label": False}, {}, r"holds replies with labels .*answer=completion"),
        ({"prompt": "a", "answer": " "}, {}, "column 'answer' is empty; drop the row"),
        (
            VERL,
            {"answer": "reward_model.ground_trut"},
            r"rows\.jsonl:1: .*no 'ground_trut'; did you mean 'ground_truth'",
        ),
        (VERL, {"answer": "prompt[3].content"}, r"task\.params\.answer = .*: there is no '3'; it is \["),
        (
            VERL,
            {"answer": "reward_modl.ground_truth"},
            "no column 'reward_modl.ground_truth'; did you mean 'reward_model'",
        ),
    ],
)
def test_rows_that_are_no_tasks_name_the_setting_that_helps(
    row: dict[str, Any], params: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        one(tmp_path, row, **params)
