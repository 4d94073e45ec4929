"""Check and repair of a store: nothing unreadable stays, nothing is lost."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import pytest

import r3agent
from r3agent import load
from r3agent.cli.main import main
from r3agent.errors import BusyError, ConfigError, SchemaVersionError
from r3agent.records.record import MENDED
from r3agent.records.trajectory import Span, Task, Trajectory
from r3agent.store.check import check_store
from r3agent.store.labels import SpanLabel, append_labels, labels_path
from r3agent.store.shards import TrajectoryWriter, shards


def episode(name: str, **fields: Any) -> Trajectory:
    exact = {"token_ids": (1,), "prompt_token_ids": (2,), "logprobs": (-0.1,), "capability": "trainable-exact"}
    span = Span.model_validate({"span_id": f"of-{name}", "label": "attempt", "text": "42", "model": "m", **exact})
    task = Task(messages=({"role": "user", "content": name},))
    return Trajectory(trajectory_id=name, task=task, spans=(span,), **fields)


def store(directory: Path, *episodes: Trajectory) -> Path:
    with TrajectoryWriter(directory) as writer:
        for each in episodes:
            writer.append(each)
    return shards(directory)[-1]


def damaged(directory: Path) -> Path:
    """Make a store with a sound line, and one of each kind of fault."""
    shard = store(directory, *map(episode, "abcdefg"))
    lines = shard.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"[-0.1]", b"[null]")  # pydantic's form of minus infinity
    lines[2] = lines[2].replace(b'"42"', rb'"4\ud83d"')
    lines[3] = lines[3].replace(b'"metadata":{', b'"metadata":{"a":NaN,"big":1180591620717411303424,')
    lines[4] = lines[4].replace(b'"42"', b'"\xff"')
    lines[0] = codecs.BOM_UTF8 + lines[0]  # an editor's
    lines[5] = b'{"task": 3}\n'
    lines[6:] = [b"\n", lines[0], lines[6][:50]]
    shard.write_bytes(b"".join(lines))
    return shard


def test_check_reports_each_kind_of_fault(tmp_path: Path) -> None:
    shard = damaged(tmp_path)
    found = check_store(tmp_path)
    assert [(fault.line, fault.kind, fault.detail.partition(";")[0].partition(":")[0]) for fault in found.faults] == [
        (2, "mendable", "spans.0.logprobs"),
        (3, "mendable", "spans.0.text"),
        (4, "mendable", "metadata.a"),
        (5, "mendable", "byte 195 is no UTF-8"),
        (6, "unreadable", "task = 3"),
        (8, "copy", f"of {shard}"),
        (9, "torn", "no JSON (50 bytes)"),
    ]
    assert (found.files, found.records, found.ok, found.backups) == (1, 6, False, ())
    assert shards(tmp_path) == [shard]


def test_repair_mends_and_keeps_the_original(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shard = damaged(tmp_path)
    before = shard.read_bytes()
    found = check_store(tmp_path, repair=True)
    assert found.ok
    assert found.backups == (f"{shard}.bak",)
    assert Path(f"{shard}.bak").read_bytes() == before
    assert shard.read_bytes().splitlines()[0] == before.splitlines()[0]
    kept = load(tmp_path, strict=True)
    assert [t.trajectory_id for t in kept] == list("abcde")
    assert [bool(t.metadata.get(MENDED)) for t in kept] == [False, True, True, True, True]
    assert [t.spans[0].capability for t in kept] == ["trainable-exact", "eval-only", *["trainable-exact"] * 3]
    assert kept[3].metadata["big"] == 2**70
    assert not caplog.text
    again = check_store(tmp_path, repair=True)
    assert (again.faults, again.backups, again.ok) == ((), (), True)
    shard.write_bytes(before)
    assert check_store(tmp_path, repair=True).backups == (f"{shard}.bak2",)


def test_check_names_duplicates_and_unknown_labels(tmp_path: Path) -> None:
    store(tmp_path, episode("a"), episode("b"), episode("a", sample=1))
    r3agent.label(tmp_path, "b", passed=True)
    append_labels(tmp_path, [SpanLabel(trajectory_id="gone", span_id="s", passed=True, by="me")])
    with labels_path(tmp_path).open("a") as file:
        file.write('{"span_id": "of-a"}\n')
    found = check_store(tmp_path, repair=True)
    assert (found.duplicates, found.unknown_labels, found.labels) == (("a",), ("gone/s",), 2)
    assert found.backups == (f"{labels_path(tmp_path)}.bak",)
    assert [t.passed for t in load(tmp_path, strict=True)] == [None, True]


def test_repair_leaves_other_versions_and_open_files_alone(tmp_path: Path) -> None:
    shard = store(tmp_path, episode("a"))
    shard.write_text(shard.read_text().replace('"schema_version":1', '"schema_version":7'))
    found = check_store(tmp_path, repair=True)
    assert ([fault.kind for fault in found.faults], found.backups, found.ok) == (["other_version"], (), False)
    with pytest.raises(SchemaVersionError):
        load(tmp_path)
    newer = shard.read_bytes().replace(b'"42"', b'"\xff"')
    shard.write_bytes(newer + b"torn")
    assert check_store(tmp_path, repair=True).backups
    assert shard.read_bytes() == newer
    with TrajectoryWriter(tmp_path / "open") as writer:
        writer.append(episode("b"))
        (shard,) = shards(tmp_path / "open")
        with shard.open("a") as file:
            file.write("torn")
        with pytest.raises(BusyError, match=r"00000\.jsonl: another process writes it"):
            check_store(tmp_path / "open", repair=True)
    with pytest.raises(ConfigError, match="no such directory"):
        check_store(tmp_path / "typo")


def test_data_check_exits_1_until_the_store_is_repaired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged(tmp_path)
    outputs = [
        (main(["data", "check", str(tmp_path), *flags]), capsys.readouterr().out)
        for flags in ([], ["--json"], ["--repair"], ["--json"])
    ]
    assert [code for code, _ in outputs] == [1, 1, 0, 0]
    assert "00000.jsonl:6: unreadable: task = 3" in outputs[0][1]
    assert f"7 lines to repair; r3agent data check {tmp_path} --repair" in outputs[0][1]
    assert len(json.loads(outputs[1][1])["faults"]) == 7
    assert "00000.jsonl.bak" in outputs[2][1]
    assert json.loads(outputs[3][1]) | {"ok": True, "faults": [], "records": 5} == json.loads(outputs[3][1])
    assert main(["data", "check", str(tmp_path / "typo")]) == 2
