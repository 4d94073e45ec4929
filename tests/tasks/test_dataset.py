"""Files of columns, and directories and data sets that `datasets` reads."""

from __future__ import annotations

import gzip
import json
import math
import os
import pickle
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r3agent.errors import ConfigError
from r3agent.records.trajectory import Task
from r3agent.tasks import default_verifier, find_tasks, is_finite, read_tasks
from r3agent.tasks.dataset import Columns, tasks_of
from r3agent.tasks.json_values import exact_json
from r3agent.tasks.rows import Row, Rows
from r3agent.tasks.splits import split_of

ROWS = [
    {"question": f"What is {i} + {i}?", "solution": 2 * i, "level": "easy" if i < 10 else "hard"} for i in range(20)
]
MAPPING = {"prompt": "Answer briefly. {{ question }}", "answer": "solution"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "\n".join(map(json.dumps, rows))


def written(directory: Path, ending: str, rows: list[dict[str, Any]] = ROWS) -> str:
    path = directory / f"rows{ending}"
    match ending:
        case ".jsonl":
            path.write_text(jsonl(rows))
        case ".jsonl.gz":
            path.write_bytes(gzip.compress(jsonl(rows).encode()))
        case ".json":
            path.write_text(json.dumps(rows))
        case ".csv":
            lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
            path.write_text("\n".join(lines))
        case _:
            pandas = pytest.importorskip("pandas", reason="needs the data extra")
            pandas.DataFrame(rows).to_parquet(path)
    return str(path)


def tasks(rows: list[dict[str, Any]], **columns: Any) -> list[Task]:
    known = tuple(dict.fromkeys(c for row in rows for c in row))
    numbered = [Row(f"f row {i}", row) for i, row in enumerate(rows, start=1)]
    return list(tasks_of(Rows(known, numbered), Columns(**columns), where="f"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a test is found by the next one."""
    config = pytest.importorskip("datasets", reason="needs the data extra").config
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


# ---- every kind of file gives the same tasks ----


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet"])
def test_columns_become_parts_of_tasks(ending: str, tmp_path: Path) -> None:
    source = written(tmp_path, ending)
    found = find_tasks(source, split="all", **MAPPING)
    assert [task.messages for task in found] == [
        ({"role": "user", "content": f"Answer briefly. What is {i} + {i}?"},) for i in range(20)
    ]
    assert [str(task.info["answer"]) for task in found] == [str(2 * i) for i in range(20)]
    assert found[3].gold == {"role": "assistant", "content": "6"}
    assert {key for task in found for key in task.info} == {"question", "answer", "level"}
    assert default_verifier(source) == "exact"
    assert is_finite(source)


@pytest.mark.parametrize("ending", [".json", ".csv"])
def test_splits_are_disjoint_and_hold_every_task(ending: str, tmp_path: Path) -> None:
    source = written(tmp_path, ending)
    splits = {s: {t.id for t in find_tasks(source, split=s, **MAPPING)} for s in ("train", "gate", "test")}
    assert sum(map(len, splits.values())) == len(set.union(*splits.values())) == 20
    assert all(split_of(task_id) == split for split, ids in splits.items() for task_id in ids)
    drawn = [find_tasks(source, 5, seed=seed, **MAPPING) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_local_directory_is_a_data_set_of_its_own(tmp_path: Path) -> None:
    directory = tmp_path / "sums"
    directory.mkdir()
    (directory / "train.jsonl").write_text(jsonl(ROWS[:12]))
    (directory / "test.jsonl").write_text(jsonl(ROWS[12:]))
    found = [
        len(find_tasks(f"hf:{directory}", split="all", **MAPPING, **more))
        for more in ({}, {"hf_split": "test"}, {"hf_split": "train+test"}, {"data_files": "test.jsonl"})
    ]
    assert found == [12, 8, 20, 8]
    assert is_finite(f"hf:{directory}")
    with pytest.raises(ConfigError, match=r"Unknown split \"tst\""):
        find_tasks(f"hf:{directory}", hf_split="tst", **MAPPING)
    with pytest.raises(ConfigError, match="BuilderConfig 'hard' not found"):
        find_tasks(f"hf:{directory}", subset="hard", **MAPPING)


def test_cells_of_csv_stay_the_text_that_they_are(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('prompt,answer,note\n"one, or\ntwo",007,NA\n"two",1.0,\n')
    first, second = find_tasks(str(path), split="all")
    assert (first.messages[0]["content"], first.info) == ("one, or\ntwo", {"answer": "007", "note": "NA"})
    assert second.info == {"answer": "1.0", "note": ""}


def test_text_of_json_that_looks_like_a_date_stays_text(tmp_path: Path) -> None:
    source = written(tmp_path, ".json", [{"prompt": "When?", "answer": "2024-01-02"}])
    assert find_tasks(source, split="all")[0].info == {"answer": "2024-01-02"}


# ---- the parts ----


def test_system_gold_id_and_info_are_columns_or_templates() -> None:
    rows = [{"q": "2 + 2?", "a": "4", "key": 7, "by": "Ann", "level": "easy"}]
    (task,) = tasks(
        rows, prompt="q", answer="a", gold="<answer>{{ a }}</answer>", id="key", system="Be brief.", info=["level"]
    )
    assert task == Task(
        id="7",
        messages=({"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}),
        info={"level": "easy", "answer": "4"},
        gold={"role": "assistant", "content": "<answer>4</answer>"},
    )
    (task,) = tasks(rows, prompt="{{ row['q'] }} {{ by | upper }}", system="by", answer="a")
    assert [m["content"] for m in task.messages] == ["Ann", "2 + 2? ANN"]
    assert task.info == {"q": "2 + 2?", "key": 7, "level": "easy", "answer": "4"}


def test_a_column_of_messages_and_tools_is_taken_whole() -> None:
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "?"},
    ]
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": "{}"}}]}
    rows = [{"chat": turns, "tools": [{**TOOL, "strict": None}], "call": call}]
    (task,) = tasks(rows, prompt="chat", tools="tools", gold="call")
    (same,) = tasks([{**rows[0], "tools": json.dumps([TOOL])}], prompt="chat", tools="tools", gold="call")
    assert [*task.messages] == turns
    assert task.tools == same.tools == (TOOL,)
    assert task.gold is not None
    assert task.gold["tool_calls"] == call["tool_calls"]


def test_rows_that_repeat_one_another_are_one_task_and_in_one_split(tmp_path: Path) -> None:
    rows = [*ROWS, *ROWS[:5]]
    source = written(tmp_path, ".json", rows)
    assert len(find_tasks(source, split="all", **MAPPING)) == 20
    assert len(read_tasks(source, split="all", **MAPPING)) == 25
    differing = written(tmp_path, ".json", [*ROWS, {**ROWS[0], "solution": 9}])
    with pytest.raises(ConfigError, match="stands for two tasks that differ"):
        find_tasks(differing, split="all", **MAPPING)


# ---- what is refused, and in which words ----


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"prompt": "queston"}, r"task\.params\.prompt: .*rows\.json has no column 'queston'; did you mean 'question'"),
        ({"prompt": "question", "answer": "answr"}, r"params\.answer: .*'answr'; known are question, solution, level"),
        ({"prompt": "question", "info": ["lvel"]}, r"params\.info: .*'lvel'; did you mean 'level'"),
        ({"prompt": "{{ queston }}"}, r"params\.prompt: queston is unknown; did you mean 'question'"),
        ({"prompt": "{{ question"}, r"params\.prompt: line 1: "),
        ({"prompt": "{{ question.__class__ }}"}, r"rows\.json row 1: task\.params\.prompt: .*SecurityError"),
        ({"prompt": "{{ row.nothing }}"}, r"rows\.json row 1: task\.params\.prompt: .*UndefinedError"),
        ({"promt": "question"}, r"task\.params\.promt is unknown; did you mean 'prompt'"),
        ({"subset": "hard", "prompt": "question"}, r"task\.params\.subset is unknown; known are prompt, system"),
        ({"info": "level"}, r"task\.params\.info = 'level': must be a list of columns"),
        ({"prompt": 7}, r"task\.params\.prompt = 7: must be text"),
        ({}, r"has no column 'prompt'; known are question, solution, level"),
    ],
)
def test_a_wrong_mapping_names_the_key_and_the_nearest_column(
    columns: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        find_tasks(written(tmp_path, ".json"), split="all", **columns)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "?", "answer": None}, "f row 2, column 'answer' is empty"),
        ({"prompt": "?", "answer": math.nan}, "f row 2, column 'answer' is empty"),
        ({"prompt": "?", "answer": []}, "f row 2, column 'answer' is empty"),
        ({"prompt": "?", "answer": b"\xff\xd8"}, r"f row 2, column 'answer': b'\\xff\\xd8', a bytes that JSON cannot"),
        ({"prompt": "?", "answer": math.inf}, "f row 2, column 'answer': inf, a float that JSON cannot hold"),
        (
            {"prompt": "?", "answer": "\ud800"},
            r"f row 2, column 'answer': '\\ud800', a str that JSON cannot hold; leave",
        ),
        ({"prompt": "[{'role': 'user', 'content': '?'}]", "answer": 1}, "f row 2: .* is messages in Python's notation"),
        ({"prompt": "  ", "answer": 1}, "f row 2: its prompt is '  '"),
        ({"prompt": None, "answer": 1}, "f row 2: its prompt is None"),
        ({"prompt": ["a"], "answer": 1}, "f row 2: its prompt is "),
        ({"prompt": [{"role": "assistant", "content": "a"}], "answer": 1}, "f row 2: its prompt ends with the assist"),
    ],
)
def test_a_row_that_is_no_task_is_named_with_its_column(row: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        tasks([{"prompt": "fine", "answer": 0}, row])


def test_tools_that_are_none_are_named() -> None:
    for tools, says in (("[", "its tools are not JSON"), ({"a": 1}, "its tools are a dict")):
        with pytest.raises(ConfigError, match=f"f row 1: {says}"):
            tasks([{"prompt": "?", "tools": tools}], tools="tools")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"prompt": "?"}\n\n{"prompt": ', r"a\.jsonl:3: not JSON: Expecting value: line 3 column 12"),
        ("a.jsonl", b'{"a": 1}\n[1]', r"a\.jsonl:2 is \[1\]; every row must be an object"),
        ("a.jsonl", b'{"a": 1, "a": 2}', r"a\.jsonl:1: not JSON: the key 'a' is there twice"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", r"a\.jsonl is a pointer of Git LFS"),
        ("a.jsonl.gz", b"\x1f\x8b\x08 cut", r"a\.jsonl\.gz: EOFError"),
        ("a.json", b'{"a": 1}', r"a\.json is a JSON dict; it must be an array of objects, or name it \.jsonl .*orient"),
        ("a.json", b"[1]", r"a\.json row 1 is 1; every row"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", r"a\.csv:3 has 3 cells, and the header the columns a, b; quote cells"),
        ("a.csv", b"a,b\n1,2\n1\n", r"a\.csv:3 has 1 cells, and the header the columns a, b"),
        ("a.csv", b'a,b\n1,"2\n1,2\n', r"a\.csv: unexpected end of data"),
        ("a.csv", b"a,b\n1,\xf62\n", r"a\.csv:2 is not UTF-8 \(byte 0xf6\); .* task\.params\.encoding"),
        ("a.csv", b"a,b\n1,\x002\n", r"a\.csv:2 has a NUL byte"),
        ("a.csv", b"a,a\n1,2\n", r"a\.csv: the first line must name every column once"),
        ("a.csv", b"", r"a\.csv: the first line must name every column once"),
        ("a.parquet", b"PAR1", r"a\.parquet: ArrowInvalid"),
    ],
)
def test_a_damaged_file_is_named_with_the_place(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        find_tasks(str(tmp_path / name), prompt="a", split="all")
    with pytest.raises(ConfigError, match=r"there is no such file"):
        find_tasks(str(tmp_path / "no" / name), prompt="a")


def test_data_is_never_run(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    directory = tmp_path / "evil"
    directory.mkdir()
    (directory / "evil.py").write_text(f"open({str(proof)!r}, 'w')")
    with pytest.raises(ConfigError, match="evil"):
        find_tasks(f"hf:{directory}", prompt="a", split="all")

    class Payload:
        def __reduce__(self) -> Any:
            return open, (str(proof), "w")

    (tmp_path / "rows.pkl").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ConfigError, match="pandas"):
        find_tasks("hf:pandas", data_files=str(tmp_path / "rows.pkl"), prompt="a", split="all")
    with pytest.raises(ConfigError, match=r"params\.trust_remote_code is unknown"):
        find_tasks(f"hf:{directory}", trust_remote_code=True, prompt="a")
    assert not proof.exists()


def test_a_hub_that_is_not_reached_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    script = "from r3agent.cli.main import main; main(['collect', '--run', 'run', '--task', 'hf:openai/gsm8k'])"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert "hf:openai/gsm8k: " in done.stderr
    assert "check the name and the network" in done.stderr
    assert "Traceback" not in done.stderr


# ---- values ----

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63) + 1, 2**63 - 1),
    st.floats(allow_infinity=False),
    st.text(st.characters(codec="utf-8")),
    st.dates(),
    st.datetimes(),
    st.times(),
    st.decimals(allow_nan=False),
    st.text(st.characters(codec="utf-8")).map(str.encode),
    st.uuids(),
)
VALUES = st.recursive(LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=3), v, max_size=3))


@given(VALUES)
def test_what_becomes_plain_survives_a_record(value: Any) -> None:
    found = exact_json(value, "here")
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert exact_json(found, "here") == found


def test_values_of_columns_become_the_json_that_is_meant() -> None:
    made = datetime(2024, 1, 2, 3, tzinfo=UTC)
    meant = {
        "a": [1, 2],
        "b": 1.5,
        "c": "2024-01-02T03:00:00+00:00",
        "d": "2024-01-02",
        "e": 90.0,
        "f": "1.10",
        "g": None,
    }
    given_ = {
        "a": np.array([1, 2]),
        "b": np.float32(1.5),
        "c": made,
        "d": date(2024, 1, 2),
        "e": timedelta(minutes=1.5),
        "f": Decimal("1.10"),
        "g": np.float64("nan"),
    }
    assert exact_json(given_, "here") == meant
    assert orjson.loads(orjson.dumps(exact_json(given_, "here"))) == meant
