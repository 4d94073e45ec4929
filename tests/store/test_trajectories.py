from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from r3agent.errors import ConfigError, RecordError, SchemaVersionError
from r3agent.records.trajectory import EpisodeError, Trajectory
from r3agent.store.index import latest_entries
from r3agent.store.labels import label
from r3agent.store.shards import TrajectoryWriter, read, shards
from r3agent.store.trajectories import features, load, to_dataset
from tests.support.trees import span, trajectories, tree


def write(directory: Path, *records: Trajectory) -> Path:
    """The shard that now holds `records`."""
    with TrajectoryWriter(directory) as writer:
        for record in records:
            writer.append(record)
    return shards(directory)[-1]


def errored(trajectory: Trajectory) -> Trajectory:
    return trajectory.model_copy(update={"error": EpisodeError(kind="VerifierError", message="no")})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A store with what a run holds: passes, failures, a branching tree, an error, tool calls, several shards."""
    exact = {"prompt_token_ids": (1, 2), "token_ids": (3,), "logprobs": (-0.5,), "capability": "trainable-exact"}
    passed, failed = span("attempt", passed=True, **exact), span("attempt", passed=False, **exact)
    reflections = [span("reflect", failed, **exact) for _ in range(2)]
    retries = [span("retry", r, passed=i == 0, **exact) for i, r in enumerate(reflections)]
    blind = span("retry", failed, passed=False, tool_calls=({"id": "1", "function": {"name": "f"}},))
    write(tmp_path, tree(passed))
    write(tmp_path, tree(failed, *reflections, *retries, blind), tree(passed).model_copy(update={"metadata": {"k": 1}}))
    write(tmp_path, errored(tree(span("attempt", text="no ids", capability_note="the endpoint returned no token ids"))))
    return tmp_path


def test_what_is_appended_is_read_in_order(tmp_path: Path) -> None:
    records = [tree(span("attempt", passed=True)), tree(), errored(tree(span("attempt")))]
    write(tmp_path, *records[:2])
    write(tmp_path, records[2])
    assert list(read(tmp_path)) == records == load(tmp_path)
    assert [shard.name for shard in shards(tmp_path)] == ["00000.jsonl", "00001.jsonl"]


@pytest.mark.parametrize("has_store", [True, False])
def test_run_directory_stands_for_its_store(tmp_path: Path, has_store: bool) -> None:
    run, record = tmp_path / "run", tree(span("attempt", passed=False))
    (run / "trajectories" if has_store else run).mkdir(parents=True)
    (run / "r3.toml").write_text("")
    if not has_store:
        with pytest.raises(ConfigError, match=r"run/trajectories: there is no such directory; collect some"):
            load(run)
    write(run, record)
    label(run, record, passed=True)
    assert [path.name for path in shards(run / "trajectories")] == ["00000.jsonl"]
    assert load(run) == load(run / "trajectories") != [record]
    assert to_dataset(run)["trajectory_id"] == [record.trajectory_id]


@given(trajectories())
def test_any_record_is_one_line(trajectory: Trajectory) -> None:
    assert "\n" not in trajectory.model_dump_json()


def test_writers_do_not_share_a_shard(tmp_path: Path) -> None:
    with TrajectoryWriter(tmp_path) as one, TrajectoryWriter(tmp_path) as other:
        for writer in (one, other, one, other):
            writer.append(tree())
    assert [len(shard.read_bytes().splitlines()) for shard in shards(tmp_path)] == [2, 2]


def test_a_shard_that_is_there_is_never_appended_to(tmp_path: Path) -> None:
    taken = tmp_path / "00001.jsonl"  # its elder was moved elsewhere, so that counting files gives its number
    taken.write_bytes(b"torn")
    write(tmp_path, tree())
    assert taken.read_bytes() == b"torn"
    assert [shard.name for shard in shards(tmp_path)] == ["00001.jsonl", "00002.jsonl"]


def test_nothing_appended_makes_no_shard(tmp_path: Path) -> None:
    with TrajectoryWriter(tmp_path):
        pass
    assert shards(tmp_path) == []


def test_a_line_torn_at_any_byte_loses_only_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept, torn, later = tree(span("attempt", passed=True)), tree(span("attempt", text="ünïcode")), tree()
    shard = write(tmp_path, kept, torn)
    whole = shard.read_bytes()
    write(tmp_path, later)
    start = whole.index(b"\n") + 1
    for end in range(start, len(whole) + 1):
        shard.write_bytes(whole[:end])
        caplog.clear()
        complete = end >= len(whole) - 1
        assert load(tmp_path) == ([kept, torn, later] if complete else [kept, later])
        reported = [record.getMessage() for record in caplog.records]
        torn_line = [f"{shard}:2: torn line skipped ({end - start} bytes)"]
        assert reported == ([] if complete or end == start else torn_line)


def test_a_line_damaged_in_the_middle_loses_only_itself(tmp_path: Path) -> None:
    first, last = tree(), tree()
    shard = write(tmp_path, first, tree(), last)
    lines = shard.read_bytes().splitlines(keepends=True)
    shard.write_bytes(lines[0] + lines[1][:9] + b"\n" + lines[2])
    assert load(tmp_path) == [first, last]


@contextmanager
def disk_full_at(n_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_reported_and_tears_one_line_at_most(tmp_path: Path) -> None:
    first, second, third = tree(), tree(), tree()
    with TrajectoryWriter(tmp_path) as writer:
        writer.append(first)
        with disk_full_at(shards(tmp_path)[0].stat().st_size + 10), pytest.raises(RecordError, match="cannot write to"):
            writer.append(second)
        writer.append(third)
    assert load(tmp_path) == [first, third]
    assert [*latest_entries(tmp_path)] == [first.trajectory_id, third.trajectory_id]
    assert [shard.read_bytes().count(b"\n") for shard in shards(tmp_path)] == [1, 1]  # the incomplete line is cut off


@pytest.mark.parametrize("fsync", ["never", "interval", "episode"])
def test_whatever_the_time_of_fsync_all_is_read_while_it_is_written(tmp_path: Path, fsync: Any) -> None:
    with TrajectoryWriter(tmp_path, fsync=fsync) as writer:
        for n in range(3):
            writer.append(tree())
            assert len(load(tmp_path)) == n + 1


def test_an_episode_collected_again_replaces_the_errored_one(tmp_path: Path) -> None:
    good, other = tree(span("attempt", passed=True)), tree()
    write(tmp_path, errored(good), other)
    write(tmp_path, good, errored(good))
    assert load(tmp_path) == [good, other]


def test_a_record_of_another_schema_is_refused_with_its_place(tmp_path: Path) -> None:
    shard = write(tmp_path, tree(), tree())
    shard.write_text(shard.read_text().replace('"schema_version":1', '"schema_version":7'))
    with pytest.raises(SchemaVersionError, match=rf"{shard}:1: schema_version = 7"):
        load(tmp_path)


def test_load_leaves_out_lines_that_are_no_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, last = tree(), tree()
    shard = write(tmp_path, first)
    shard.write_text(shard.read_text() + (json.dumps({"task": 3}) + "\n") * 2 + last.line().decode())
    assert load(tmp_path) == [first, last]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"{shard}:2: not a trajectory: task = 3")
    assert warning.endswith(
        f"2 lines are no records and are left out; `r3agent data check {tmp_path}` lists and repairs such lines"
    )
    caplog.clear()
    assert load(tmp_path, unreadable=(unreadable := [])) == [first, last]
    assert ([found.line for found in unreadable], caplog.text) == ([2, 3], "")
    with pytest.raises(RecordError, match=rf"{shard}:2: not a trajectory.*r3agent data check"):
        load(tmp_path, strict=True)


def test_a_missing_directory_is_not_an_empty_store(tmp_path: Path) -> None:
    (tmp_path / "prod").mkdir()
    with pytest.raises(ConfigError, match=r"prodd: there is no such directory; did you mean 'prod'\? check the path"):
        load(tmp_path / "prodd")


def test_writer_refuses_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="choose another directory"):
        TrajectoryWriter(tmp_path / "file" / "store")


# ---- datasets ----


def test_datasets_reads_the_shards(run: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the train extra")
    files = [str(shard) for shard in shards(run)]
    rows = datasets.load_dataset("json", data_files=files, split="train", features=features(), cache_dir=run / "cache")
    stamped = [row | {"created_at": t.created_at} for row, t in zip(rows, load(run), strict=True)]
    assert [Trajectory.model_validate(row) for row in stamped] == load(run)  # pyarrow writes times in its own way


def test_datasets_reads_a_shard_without_being_told_the_columns(run: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the train extra")
    branching = str(shards(run)[1])
    rows = datasets.load_dataset("json", data_files=branching, split="train", cache_dir=run / "cache")
    assert [s["label"] for s in rows[0]["spans"]] == ["attempt", "reflect", "reflect", "retry", "retry", "retry"]
    assert rows[0]["spans"][1]["token_ids"] == [3]


def test_to_dataset_has_a_row_for_each_trajectory(run: Path) -> None:
    pytest.importorskip("datasets", reason="needs the train extra")
    assert [Trajectory.model_validate(row) for row in to_dataset(run)] == load(run)


def test_to_dataset_of_nothing_says_so(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="needs the train extra")
    with pytest.raises(RecordError, match="no trajectories; collect some first"):
        to_dataset(tmp_path)
