from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from r3agent.cli.main import main
from tests.report.runs import make_run


def test_report_names_its_file_and_refuses_what_it_cannot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    assert main(["report", str(run)]) == 0
    headline, file = capsys.readouterr().out.splitlines()
    assert headline.startswith("Better: v0001 solves 75.0 points more than v0000")
    assert file.startswith(f"{run}/report.html: ")
    assert file.endswith(" kB, 93 episodes")
    assert main(["report", str(run), "--out", str(tmp_path / "a" / "b.html"), "--limit", "9", "--json"]) == 0
    written = orjson.loads(capsys.readouterr().out)
    assert (tmp_path / "a" / "b.html").stat().st_size == written["bytes"]
    assert written["listed"] < 93
    for words in ([str(tmp_path / "none")], [str(run), "--limit", "0"], [str(run), "--serve", "--out", "x"]):
        assert main(["report", *words]) == 2, words
        assert "r3agent report: " in capsys.readouterr().err
