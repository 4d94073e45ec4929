"""Labels from files of outcomes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from r3agent import load
from r3agent.cli.main import main
from r3agent.store.check import check_store
from r3agent.store.labels import label, labels_path
from r3agent.store.shards import TrajectoryWriter
from tests.support.trees import span, tree


def store(directory: Path, n: int = 6) -> Path:
    with TrajectoryWriter(directory) as writer:
        for i in range(n):
            attempt = span("attempt", passed=False, span_id=f"a{i}")
            retry = span("retry", attempt, passed=True, span_id=f"r{i}")
            writer.append(tree(attempt, retry).changed(trajectory_id=f"t{i}", metadata={"episode": f"order-{i}"}))
    return directory


def label_from(directory: Path, file: Path, *words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, Any]:
    code = main(["label", str(directory), "--from", str(file), "--json", *words])
    printed = capsys.readouterr()
    return code, json.loads(printed.out) if printed.out else printed.err


def verdicts(directory: Path) -> dict[str, Any]:
    return {
        s.span_id: (v.passed, v.score, v.feedback, v.by)
        for t in load(directory)
        for s in t.spans
        if (v := s.verdict) and v.by is not None
    }


def test_outcomes_of_a_table_label_the_tries_they_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prod, file = store(tmp_path / "prod"), tmp_path / "outcomes.csv"
    file.write_text(
        "Episode;passed;score;try;note;by;customer\n"
        "t0;no;;;sent it back;ann;7\n"
        "order-1;TRUE;;attempt;;ann;8\n"
        "t2;;0.25;a2;half;ann;9\n"
    )
    code, report = label_from(prod, file, capsys=capsys)
    assert (code, report["labelled"], report["columns_not_read"]) == (0, 3, ["customer"])
    assert verdicts(prod) == {
        "r0": (False, 0.0, "sent it back", "ann"),
        "a1": (True, 1.0, None, "ann"),
        "a2": (False, 0.25, "half", "ann"),
    }
    assert check_store(prod).labels == 3
    code, report = label_from(prod, file, capsys=capsys)
    assert (code, report["labelled"], report["unchanged"]) == (0, 0, 3)


def test_outcomes_that_cannot_count_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prod, file = store(tmp_path / "prod"), tmp_path / "outcomes.jsonl"
    rows: list[dict[str, Any]] = [
        {"id": "t0", "passed": False},
        {"id": "t0", "passed": False, "note": "again"},
        {"id": "t1", "passed": True},
        {"id": "order-1", "passed": False},
        {"id": "nobody", "passed": True},
        {"id": "t2", "score": 7},
        {"id": "t3", "score": "NaN"},
        {"id": "t4", "passed": "perhaps"},
        {"id": "t5", "passed": True, "try": "reflect"},
        {"id": "", "passed": True},
        {"id": "t5"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, report = label_from(prod, file, capsys=capsys)
    assert (code, report["rows"], report["labelled"], report["doubled"]) == (1, 11, 1, 1)
    assert report["left_out"] == {"unknown": 1, "doubled": 2, "bad": 6}
    assert "outcomes.jsonl:6: score 7; it is a number from 0 to 1" in " ".join(report["examples"]["bad"])
    assert [*verdicts(prod)] == ["r0"]
    assert main(["label", str(prod), "--from", str(file)]) == 1
    assert "1 left out, unknown:\n" in capsys.readouterr().out


def test_outcome_named_none_is_of_no_episode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prod, file = tmp_path / "prod", tmp_path / "outcomes.csv"
    with TrajectoryWriter(prod) as writer:
        writer.append(tree(span("attempt", passed=False)))
    file.write_text("episode,passed\nNone,true\n")
    code, report = label_from(prod, file, capsys=capsys)
    assert (report["labelled"], report["left_out"], verdicts(prod)) == (0, {"unknown": 1}, {}), code


def test_outcomes_of_complaints_have_one_for_all_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prod, file = store(tmp_path / "prod"), tmp_path / "complaints.csv"
    file.write_text("episode,note\norder-3,late\n")
    code, _ = label_from(prod, file, "--failed", capsys=capsys)
    assert code == 0
    (verdict,) = verdicts(prod).values()
    assert verdict[:3] == (False, 0.0, "late")


def test_outcomes_are_outscored_by_a_later_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prod, file = store(tmp_path / "prod"), tmp_path / "outcomes.csv"
    file.write_text("episode,score\nt0,0.5\n")
    label_from(prod, file, capsys=capsys)
    label(prod, "t0", passed=True, by="bob")
    assert verdicts(prod) == {"r0": (True, 1.0, None, "bob")}


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("episode,pased\nt0,true\n", [], "neither passed nor score; did you mean 'pased'"),
        ("ticket,passed\nt0,true\n", [], "name that of the episodes' ids 'episode'"),
        ("episode,passed\nt0,true\n", ["--failed"], "leave --failed and --passed out"),
        ("episode\nt0\n", ["--passed", "--failed"], "add only --passed or --failed"),
    ],
)
def test_file_of_outcomes_is_refused_whole(
    text: str, words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prod, file = store(tmp_path / "prod"), tmp_path / "outcomes.csv"
    file.write_text(text)
    code, error = label_from(prod, file, *words, capsys=capsys)
    assert code == 2
    assert message in error
    assert not labels_path(prod).exists()


WRITES = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))
from r3agent.cli.main import main
sys.exit(main(["label", sys.argv[1], "--from", sys.argv[2], "--failed"]))
"""


def test_outcomes_are_all_stored_or_none(tmp_path: Path) -> None:
    prod, file = store(tmp_path / "prod"), tmp_path / "complaints.csv"
    label(prod, "t5", passed=True, by="bob")
    before = labels_path(prod).read_bytes()
    file.write_text("episode\n" + "".join(f"t{i}\n" for i in range(5)))
    run = subprocess.run(
        [sys.executable, "-c", WRITES, str(prod), str(file)],
        capture_output=True, text=True, check=False, env={**os.environ},
    )  # fmt: skip
    assert run.returncode == 1, run.stderr
    assert "File too large; what is stored stays" in run.stderr
    assert labels_path(prod).read_bytes() == before


def test_label_without_an_episode_names_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["label", "runs/prod", "--passed"]) == 2
    assert "or RUN --from outcomes.csv" in capsys.readouterr().err
