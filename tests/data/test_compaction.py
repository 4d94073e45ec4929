"""Compaction: everything is read as before, from fewer bytes, and a crash at any point loses nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from r3agent import label, load
from r3agent.cli.main import main
from r3agent.data import compact, forget, stats
from r3agent.store.check import check_store
from r3agent.store.parquet import read_lines
from r3agent.store.shards import TrajectoryWriter, shards

from .stores import collected

NAMES = ("a", "b", "c", "d")


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.is_file())


def test_compact_store_is_read_as_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (first, *_) = collected(tmp_path, *NAMES)
    label(tmp_path, first, passed=True)
    before, lines = load(tmp_path), [line for path in shards(tmp_path) for line in path.read_bytes().splitlines()]
    assert main(["data", "compact", str(tmp_path)]) == 0
    assert re.search(r"4 shards with 4 lines became 1 .*: \d+\.\d kB became \d+\.\d kB", capsys.readouterr().out)
    (packed,) = shards(tmp_path)
    assert packed.name == "00000.parquet"
    assert [*read_lines(packed)] == lines
    assert load(tmp_path, strict=True) == before
    assert packed.stat().st_size < sum(map(len, lines)) / 2
    assert check_store(tmp_path).ok
    assert stats(tmp_path).episodes == 4
    assert len(collected(tmp_path, *NAMES, "e")) == 5  # the four count as stored
    assert names(tmp_path) == [".compact.lock", "00000.parquet", "00001.jsonl"]
    report = compact(tmp_path)
    assert (report.sources, report.lines) == (1, 1)
    assert compact(tmp_path).sources == 0
    assert forget(tmp_path, where="user=a").episodes == (first.trajectory_id,)
    assert len(load(tmp_path)) == 4


def test_compact_leaves_what_is_written_or_damaged(tmp_path: Path) -> None:
    collected(tmp_path, *NAMES)
    first, second = shards(tmp_path)[:2]
    with first.open("ab") as file:
        file.write(b'{"trajectory_id": "torn')
    with TrajectoryWriter(tmp_path) as writer:
        writer.append(load(tmp_path)[0].changed(trajectory_id="open"))
        report = compact(tmp_path)
        writer.append(load(tmp_path)[0].changed(trajectory_id="later"))
    assert report.skipped[str(first)].startswith("1 line to repair")
    assert [why for path, why in report.skipped.items() if path != str(first)] == ["a process writes it"]
    assert names(tmp_path) == [".compact.lock", "00000.jsonl", f"{second.stem}.parquet", "00004.jsonl"]
    assert len(load(tmp_path)) == 6


CRASH = """
import os, sys
from pathlib import Path
from r3agent.data import compact
left = int(sys.argv[2])
def killing(function):
    def run(*args, **named):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), 9)
        return function(*args, **named)
    return run
os.replace, Path.unlink = killing(os.replace), killing(Path.unlink)
compact(sys.argv[1])
"""


def test_compact_goes_on_after_a_kill_at_any_step(tmp_path: Path) -> None:
    for n_steps in range(0, 100, 2):
        store = tmp_path / str(n_steps)
        before = collected(store, *NAMES)
        killed = subprocess.run([sys.executable, "-c", CRASH, str(store), str(n_steps)], check=False)
        assert load(store, strict=True) == before
        if killed.returncode == 0:
            break
        new = before[0].changed(trajectory_id="new")
        with TrajectoryWriter(store) as writer:  # its shard may get the number of one that was removed
            writer.append(new)
        compact(store)
        assert {t.trajectory_id for t in load(store, strict=True)} == {t.trajectory_id for t in [*before, new]}
        assert all(name.endswith(".parquet") or name == ".compact.lock" for name in names(store))
        assert not check_store(store).faults
    assert n_steps > 4
