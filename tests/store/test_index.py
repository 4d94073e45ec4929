"""Index of a store: it says what loading says, whatever happened to it or to its shard."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from r3agent.errors import ConfigError, RecordError, SchemaVersionError
from r3agent.records.summary import Tally, summarise
from r3agent.records.trajectory import EpisodeError, Trajectory
from r3agent.store import parquet
from r3agent.store.check import check_store
from r3agent.store.counting import count
from r3agent.store.entry import index_path
from r3agent.store.index import EntryReader, entries, latest_entries, lookup
from r3agent.store.labels import label
from r3agent.store.lines import encode
from r3agent.store.shards import TrajectoryWriter, shards
from r3agent.store.trajectories import load
from tests.support.trees import span, tree


def reflected(passed: bool = True, **fields: Any) -> Trajectory:
    first = span("attempt", passed=False, policy_version="v0001")
    reflections = [span("reflect", first, policy_version="v0001") for _ in range(2)]
    retries = [span("retry", r, passed=passed and not i, policy_version="v0001") for i, r in enumerate(reflections)]
    return tree(first, *reflections, *retries).changed(**fields)


def write(directory: Path, *records: Trajectory, **settings: Any) -> Path:
    with TrajectoryWriter(directory, **settings) as writer:
        for record in records:
            writer.append(record)
    return shards(directory)[-1]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with several shards, an error that was run again, a branch and labels."""
    failed = reflected(error=EpisodeError(kind="VerifierError", message="no"))
    parent = reflected(passed=False)
    branch = parent.changed(trajectory_id="branch", parent_id=parent.trajectory_id)
    write(tmp_path, failed, parent, tree(span("attempt", passed=True)))
    write(tmp_path, branch, failed.changed(error=None), reflected(metadata={"split": "train", "source": "s"}))
    write(tmp_path, reflected(), unique=True, indexed=False)
    label(tmp_path, parent, passed=True, span_id=parent.spans[-1].span_id)
    return tmp_path


def check(store: Path) -> None:
    """Compare what the index says with what the records say."""
    loaded = load(store)
    found = latest_entries(store)
    assert [*found] == [t.trajectory_id for t in loaded]
    tally = Tally()
    count(tally, store, found.values())
    assert tally.summary() == summarise(loaded)
    reader = EntryReader()
    for trajectory, entry in zip(loaded, found.values(), strict=True):
        assert reader.read(entry).spans[0].span_id == trajectory.spans[0].span_id
        assert (entry.task_id, entry.sample) == (trajectory.task.id, trajectory.sample)
        assert entry.split == trajectory.metadata.get("split")


def test_index_says_what_loading_says(store: Path) -> None:
    check(store)
    assert {path.name for path in (store / "index").iterdir()} == {index_path(shard).name for shard in shards(store)}
    before = {path: path.stat().st_mtime_ns for path in (store / "index").iterdir()}
    check(store)
    assert {path: path.stat().st_mtime_ns for path in (store / "index").iterdir()} == before
    accepted = latest_entries(store, version="v0001", accept=lambda t: t.parent_id is None)
    assert [*accepted] == [t.trajectory_id for t in load(store, version="v0001", accept=lambda t: t.parent_id is None)]


def test_lookup_finds_a_record_with_and_without_an_index(store: Path) -> None:
    named = reflected(metadata={"episode": "order-8"})
    write(store, named, indexed=False)
    last = load(store)[-2]
    for _ in range(2):
        assert lookup(store, "branch").parent_id is not None
        assert lookup(store, last.trajectory_id[:12]) == last
        assert lookup(store, "order-8") == named
        with pytest.raises(ConfigError, match="'ordre-8': not among the 7 in"):
            lookup(store, "ordre-8")
        assert len(latest_entries(store)) == 7


def test_index_is_made_anew_whatever_happened_to_it(store: Path) -> None:
    shard = shards(store)[1]
    index = index_path(shard)
    whole = index.read_bytes()
    for damaged in (
        b"",
        b"{}",
        whole[:-9],
        whole[: whole.index(b"\n") + 5],
        b"\xff" * 9,
    ):
        index.write_bytes(damaged)
        check(store)
        assert index.read_bytes() == whole
    index.write_bytes(whole.replace(b"[0,", b"[7,"))
    with pytest.raises(RecordError, match="call again"):
        check(store)
    check(store)
    first, *others = shard.read_bytes().splitlines(keepends=True)
    shard.write_bytes(b"".join(others))  # an editor took a line out
    check(store)
    shard.write_bytes(b"".join([*others, first, first[:30]]))
    check(store)
    changed = shard.read_bytes().replace(b'"sample":0', b'"sample":1', 1)  # in place, so that no line moves
    shard.write_bytes(changed)
    check(store)
    (first, *others), unchanged = shards(store), index_path(shards(store)[0]).read_bytes()
    for path in (store / "index").iterdir():
        os.utime(path, (1, 1))  # a copy, or a clock that went back
    check(store)
    assert index_path(first).read_bytes() == unchanged
    shard.unlink()
    check(store)


def test_index_reports_lines_that_are_no_records(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shard = write(tmp_path, *(reflected() for _ in range(3)))
    lines = shard.read_bytes().splitlines(keepends=True)
    shard.write_bytes(
        b"".join([lines[0], b"\n", b'{"task": 3}\n', lines[1].replace(b"2 + 2", b"2 + 3"), lines[2][:40]])
    )
    index_path(shard).unlink()
    for _ in range(2):  # scanned, and from the index
        caplog.clear()
        assert [*latest_entries(tmp_path)] == [t.trajectory_id for t in load(tmp_path)]
        indexed, loaded = caplog.messages[:2], caplog.messages[2:]
        assert indexed == loaded
        assert "00000.jsonl:5: torn line skipped (40 bytes)" in indexed[0]
        assert "00000.jsonl:3: 2 lines are no records" in indexed[1] or "00000.jsonl:3: not a trajectory" in indexed[1]
    assert [*entries(tmp_path, report=False)] == [*latest_entries(tmp_path).values()]
    check_store(tmp_path, repair=True)
    assert len(latest_entries(tmp_path)) == 2
    shard.write_bytes(lines[0].replace(b'"schema_version":1', b'"schema_version":7'))
    with pytest.raises(SchemaVersionError, match=r"00000\.jsonl:1: "):
        latest_entries(tmp_path)


def test_index_of_a_shard_that_is_written_stays_its_writers(tmp_path: Path) -> None:
    with TrajectoryWriter(tmp_path) as writer:
        for n in range(70):
            writer.append(reflected())
            if n in (10, 66):
                assert len(latest_entries(tmp_path)) == n + 1
                index = index_path(shards(tmp_path)[0])
                assert index.exists() == (n > 64)
    assert len(index.read_bytes().splitlines()) == 71
    check(tmp_path)


def test_index_of_parquet_and_of_a_folder_that_is_read_only(store: Path) -> None:
    (records := [encode(reflected()).rstrip() for _ in range(3)]).insert(1, b'{"task": 3}')
    parquet.write_lines(store / "00007.parquet", records)
    (store / "index").mkdir(exist_ok=True)
    (store / "index").chmod(0o500)
    try:
        check(store)
    finally:
        (store / "index").chmod(0o700)
    check(store)
    assert len(index_path(store / "00007.parquet").read_bytes().splitlines()) == 5
    check(store)
