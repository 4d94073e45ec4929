"""Files as people have them are read as they mean them."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pyarrow import parquet

from r3agent.errors import ConfigError
from r3agent.records.trajectory import Task
from r3agent.tasks import default_verifier, find_tasks, is_finite, read_tasks
from r3agent.tasks.json_values import json_stream

ROWS = [{"prompt": f"{i} + {i}?", "answer": str(2 * i)} for i in range(12)]
CSV = "prompt,answer\n" + "".join(f"{row['prompt']},{row['answer']}\n" for row in ROWS)
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
BIG = 2**100


def tasks(path: Path, **params: Any) -> list[Task]:
    return read_tasks(str(path), split="all", **params)


def pairs(path: Path, **params: Any) -> list[tuple[str, Any]]:
    return [(task.messages[-1]["content"], task.info["answer"]) for task in tasks(path, **params)]


EXPECTED = [(row["prompt"], row["answer"]) for row in ROWS]


def table(name: str, content: str | bytes, **params: Any) -> Any:
    return pytest.param(name, content.encode() if isinstance(content, str) else content, params, id=name)


@pytest.mark.parametrize(
    ("name", "content", "params"),
    [
        table("marked.csv", b"\xef\xbb\xbf" + CSV.encode()),
        table("marked.jsonl", b"\xef\xbb\xbf" + LINES.encode()),
        table("marked.json", b"\xef\xbb\xbf" + json.dumps(ROWS).encode()),
        table("utf16.csv", CSV.encode("utf-16")),
        table("utf16.jsonl", LINES.encode("utf-16")),
        table("utf16-unmarked.csv", CSV.encode("utf-16-le"), encoding="utf-16-le"),
        table("windows.csv", CSV.encode("cp1252"), encoding="cp1252"),
        table("Capitals.CSV", CSV),
        table("Capitals.JSONL", LINES),
        table("lines.ndjson", LINES),
        table("lines.json", LINES),
        table("array.jsonl", json.dumps(ROWS)),
        table("pretty.jsonl", json.dumps(ROWS, indent=1)),
        table("objects.jsonl", "\n".join(json.dumps(row, indent=1) for row in ROWS)),
        table("wrapped.json", json.dumps({"version": 1, "data": ROWS}, indent=1)),
        table("crlf.jsonl", LINES.replace("\n", "\r\n\r\n")),
        table("crlf.csv", CSV.replace("\n", "\r\n")),
        table("mac.csv", CSV.replace("\n", "\r")),
        table("empty lines.csv", "\n" + CSV.replace("\n", "\n\n") + ",\n"),
        table("semicolons.csv", CSV.replace(",", ";")),
        table("bars.csv", CSV.replace(",", "|")),
        table("tabs.tsv", CSV.replace(",", "\t")),
        table("tabs.csv", CSV.replace(",", "\t")),
        table("stated.csv", "sep=;\r\n" + CSV.replace(",", ";")),
        table("set.csv", CSV.replace(",", "^"), delimiter="^"),
        table("trailing.csv", CSV.replace("\n", ",\n")),
        table("spaces.csv", CSV.replace(",", ", ")),
        table("quoted.csv", CSV.replace("prompt,", '"prompt",')),
        table("packed.csv.gz", gzip.compress(CSV.encode())),
        table("packed.JSONL.GZ", gzip.compress(LINES.encode())),
        table("packed_without_ending.csv", gzip.compress(CSV.encode())),
        table("unpacked_by_a_browser.csv.gz", CSV.encode()),
        table("packed.json.bz2", bz2.compress(json.dumps(ROWS).encode())),
        table("packed.jsonl.xz", lzma.compress(LINES.encode())),
        table("packed.jsonl.zst", pyarrow.compress(LINES.encode(), "zstd", asbytes=True)),
        table("data[1] a?b*c::d é.csv", CSV),
    ],
)
def test_rows_are_those_of_the_file(name: str, content: bytes, params: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    (tmp_path / "data1 axbxc::d é.csv").write_text("prompt,answer\nanother file,\n")
    assert pairs(path, **params) == EXPECTED
    assert is_finite(str(path))
    assert default_verifier(str(path)) == "exact"


def test_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.csv").write_text(CSV)
    assert pairs(Path("~/mine.csv")) == EXPECTED


def test_cells_keep_their_text(tmp_path: Path) -> None:
    cells = ["007", "1.10", "NA", "null", "nan", "None", "True", "2024-01-02", "1e5", str(BIG), "x" * 200_000, "a\nb"]
    path = tmp_path / "cells.csv"
    path.write_text("id,prompt,answer\n" + "".join(f'{i},{i}?,"{cell}"\n' for i, cell in enumerate(cells)))
    assert [answer for _, answer in pairs(path)] == cells
    assert [task.gold["content"] for task in tasks(path) if task.gold] == cells


def test_index_of_pandas_is_a_column_and_no_data(tmp_path: Path) -> None:
    path = tmp_path / "index.csv"
    path.write_text("," + CSV.replace("\n", "\n7,", len(ROWS)))
    assert pairs(path) == EXPECTED
    assert tasks(path)[0].info == {"answer": "0"}
    assert tasks(path, id="Unnamed: 0")[0].id == "7"


# ---- numbers ----


@given(st.integers(), st.decimals(allow_nan=False, allow_infinity=False, places=20), st.floats(allow_nan=False))
@example(0, Decimal("0.045385825696690432"), 0.0)
def test_json_stream_changes_no_number(whole: int, decimal: Decimal, number: float) -> None:
    ((_, read),) = json_stream(f"[{whole}, {decimal:f}, {json.dumps(number)}]", "f")
    assert (read[0], read[2]) == (whole, number)
    assert type(read[2]) is float
    written = {str(read[1]), f"{read[1]:.17g}"} if isinstance(read[1], float) else {str(read[1])}
    assert decimal in {Decimal(text) for text in written}  # a float is written with few digits, or with 17


@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "t.parquet"])
def test_numbers_of_many_digits_stay_apart(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "t.parquet":
        numbers = [Decimal(BIG + i) for i in range(40)]
        parquet.write_table(pyarrow.table({"prompt": [f"{i}?" for i in range(40)], "answer": numbers}), path)
    else:
        rows = [{"prompt": f"{i}?", "answer": BIG + i} for i in range(40)]
        path.write_text(json.dumps(rows) if name == "t.json" else "\n".join(map(json.dumps, rows)))
    for params in ({}, {"prompt": "prompt"}):
        assert [answer for _, answer in pairs(path, **params)] == [str(BIG + i) for i in range(40)]
    assert [task.gold["content"] for task in tasks(path) if task.gold] == [str(BIG + i) for i in range(40)]


def test_types_of_values_are_kept(tmp_path: Path) -> None:
    values = [1, "1", 1.5, True, "007", 0.30000000000000004, "2024-01-02", 2**63 - 1]
    path = tmp_path / "mixed.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"{i}?", "answer": v}) for i, v in enumerate(values)))
    assert [(type(v), v) for _, v in pairs(path)] == [(type(v), v) for v in values]
    path.write_text('{"prompt": "?", "answer": 3.14159265358979323846264338, "note": NaN, "worst": -Infinity}')
    assert tasks(path)[0].info == {"answer": "3.14159265358979323846264338", "note": None}


# ---- a file that has changed ----


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("prompt,answer\n" + "".join(f"{row['prompt']},{row['answer']}\n" for row in rows))


@pytest.mark.parametrize(("ending", "write"), [("csv", write_csv), ("parquet", write_parquet)])
@pytest.mark.parametrize("in_directory", [False, True])
def test_a_changed_file_of_the_same_time_is_read_anew(
    ending: str, write: Callable[..., None], in_directory: bool, tmp_path: Path
) -> None:
    path = tmp_path / f"train.{ending}"
    source = f"hf:{tmp_path}" if in_directory else str(path)
    for answer in "123":
        write(path, [{"prompt": "?", "answer": answer}])
        os.utime(path, (1e9, 1e9))
        assert [task.info["answer"] for task in find_tasks(source, split="all")] == [answer]


# ---- directories ----


def test_a_clone_of_a_hub_s_repository_is_read(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="needs the data extra")
    data = tmp_path / "data"
    data.mkdir()
    for part in range(2):
        write_parquet(data / f"train-0000{part}-of-00002.parquet", ROWS[part * 6 : part * 6 + 6])
    write_parquet(data / "test-00000-of-00001.parquet", [{"prompt": "test?", "answer": "1"}])
    found = find_tasks(f"hf:{tmp_path}", split="all")
    assert [task.messages[0]["content"] for task in found] == [row["prompt"] for row in ROWS]
    assert len(find_tasks(f"hf:{tmp_path}", split="all", hf_split="test+train[:2]")) == 3


def test_a_data_set_of_several_subsets_names_them(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="needs the data extra")
    card = "---\nconfigs:\n"
    for subset in ("main", "socratic"):
        (tmp_path / subset).mkdir()
        (tmp_path / subset / "train.jsonl").write_text(json.dumps({"prompt": subset, "answer": "007"}))
        card += f"- config_name: {subset}\n  data_files:\n  - split: train\n    path: {subset}/train*\n"
    (tmp_path / "README.md").write_text(f"{card}---\n")
    with pytest.raises(ConfigError, match=r"has the subsets main, socratic: choose with task\.params\.subset"):
        find_tasks(f"hf:{tmp_path}", split="all")
    (task,) = find_tasks(f"hf:{tmp_path}", split="all", subset="socratic")
    assert (task.messages[0]["content"], task.info) == ("socratic", {"answer": "007"})


def test_files_of_a_directory_are_taken_by_their_names(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="needs the data extra")
    for name, prompt in (("data[1].csv", "right"), ("data1.csv", "wrong")):
        write_csv(tmp_path / name, [{"prompt": prompt, "answer": "1"}])
    (task,) = find_tasks(f"hf:{tmp_path}", split="all", data_files="data[1].csv")
    assert task.messages[0]["content"] == "right"


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_directory_may_have_the_characters_of_patterns(tmp_path: Path, form: str) -> None:
    pandas = pytest.importorskip("pandas", reason="needs the data extra")
    for directory, prompt in (("x[1]*", "right"), ("x1", "wrong")):
        path = tmp_path / directory / "data[?]" / f"train.{form}"
        path.parent.mkdir(parents=True)
        frame = pandas.DataFrame([{"prompt": prompt, "answer": "007"}])
        if form == "jsonl":
            path.write_text(json.dumps({"prompt": prompt, "answer": "007"}))
        else:
            frame.to_csv(path, index=False) if form == "csv" else frame.to_parquet(path)
    (task,) = find_tasks(f"hf:{tmp_path / 'x[1]*'}", split="all")
    assert (task.messages[0]["content"], task.info) == ("right", {"answer": "007"})
    if form == "csv":
        path = tmp_path / "x[1]*" / "data[?]" / "train.csv"
        path.write_text("prompt,answer\na,1,2\n")
        with pytest.raises(ConfigError, match=re.escape(f"{path}:2 has 3 cells")):
            find_tasks(f"hf:{tmp_path / 'x[1]*'}", split="all")


def test_a_data_set_that_was_saved_to_disk_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the data extra")
    rows = datasets.Dataset.from_list([{"prompt": "?", "answer": "007"}])
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(test=rows, train=rows).save_to_disk(str(tmp_path / "two"))
    for name in ("one", "two"):
        (task,) = find_tasks(f"hf:{tmp_path / name}", split="all")
        assert task.info == {"answer": "007"}


@pytest.mark.parametrize(
    ("source", "content", "answer"),
    [
        ("hf:csv", "prompt,answer\n?,007\n", "007"),
        ("hf:csv", "prompt,answer\n?,NA\n", "NA"),
        ("hf:json", '{"prompt": "?", "answer": "2024-01-02"}', "2024-01-02"),
        ("hf:json", f'{{"prompt": "?", "answer": {BIG}}}', str(BIG)),
    ],
)
def test_a_file_of_any_name_is_read_as_it_is(source: str, content: str, answer: str, tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="needs the data extra")
    (tmp_path / "rows.dat").write_text(content)
    (task,) = find_tasks(source, data_files=str(tmp_path / "rows.dat"), split="all")
    assert task.info == {"answer": answer}


def test_lines_of_text_are_read_anew(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="needs the data extra")
    for text in ("one", "two"):
        (tmp_path / "train.txt").write_text(text)
        os.utime(tmp_path / "train.txt", (1e9, 1e9))
        (task,) = find_tasks(f"hf:{tmp_path}", prompt="text", split="all")
        assert task.messages[0]["content"] == text


def test_narrow_floats_keep_their_text(tmp_path: Path) -> None:
    numbers = pyarrow.array([0.1], pyarrow.float32())
    parquet.write_table(pyarrow.table({"prompt": ["?"], "answer": numbers}), tmp_path / "f.parquet")
    assert pairs(tmp_path / "f.parquet") == [("?", 0.1)]
