"""Lines of a shard: what is read without validation is what validation reads, and a changed line is found."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r3agent.errors import ConfigError, RecordError, SchemaVersionError
from r3agent.records.trajectory import LINE_CHECKSUM, Span, Trajectory
from r3agent.store import parquet
from r3agent.store.check import check_store
from r3agent.store.lines import ChecksumError, decode, encode
from r3agent.store.shards import TrajectoryWriter, shards
from r3agent.store.trajectories import load
from tests.support.trees import span, trajectories, tree

EXACT: dict[str, Any] = {
    "prompt_token_ids": (1, 2),
    "token_ids": (3,),
    "logprobs": (-0.5,),
    "capability": "trainable-exact",
}
LIKE_TOKENS = {"prompt_token_ids": [1], "token_ids": [2], "logprobs": [-0.5], "model": "m"}


def exact_tree(**fields: Any) -> Trajectory:
    first = span("attempt", passed=False, **EXACT)
    reflection = span("reflect", first, **EXACT, request=({"role": "user", "content": "Why?"},))
    return tree(first, reflection, span("retry", reflection, passed=True)).changed(**fields)


@given(trajectories(), st.sampled_from([{}, {"k": [1, {"a": None}]}, LIKE_TOKENS, {"list": [LIKE_TOKENS, "]"]}]))
def test_line_is_read_as_with_validation(trajectory: Trajectory, metadata: dict[str, Any]) -> None:
    for record in (trajectory.changed(metadata=metadata), exact_tree(metadata=metadata)):
        line = encode(record)
        assert line.endswith(b'"}}\n')
        validated = Trajectory.of_line(line)
        assert decode(line) == validated == record
        assert decode(line).model_dump_json() == record.model_dump_json()
        assert [s.token_ids for s in decode(line).spans] == [s.token_ids for s in record.spans]


@pytest.mark.parametrize("use", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s)), Span.model_copy])
def test_span_is_the_same_however_it_is_used_first(use: Any) -> None:
    record = exact_tree()
    for stored, original in zip(decode(encode(record)).spans, record.spans, strict=True):
        used = use(stored)
        assert type(used) is type(stored) is Span
        assert used == original
        assert repr(used) == repr(original)
        assert used.model_fields_set >= original.model_fields_set
    assert decode(encode(record)).spans[0] == record.spans[0]
    assert record.spans[0] == decode(encode(record)).spans[0]
    assert Span(**{**dict(decode(encode(record)).spans[0]), "text": "other"}).logprobs == (-0.5,)


def test_line_that_was_changed_is_left_out(tmp_path: Path) -> None:
    records = [exact_tree(), exact_tree()]
    with TrajectoryWriter(tmp_path) as writer:
        for record in records:
            writer.append(record)
    (shard,) = shards(tmp_path)
    first, second = shard.read_bytes().splitlines(keepends=True)
    shard.write_bytes(first + second.replace(b"[3]", b"[7]", 1))
    unreadable: list[Any] = []
    assert load(tmp_path, unreadable=unreadable) == records[:1]
    assert [str(line).partition(": ")[2] for line in unreadable] == [
        "its checksum is another line's: it was changed after it was written, or is damaged"
    ]
    with pytest.raises(RecordError, match=r"r3agent data check .* lists and repairs"):
        load(tmp_path, strict=True)
    (fault,) = check_store(tmp_path, repair=True).faults
    assert (fault.line, fault.kind) == (2, "mendable")
    assert load(tmp_path, strict=True)[1].spans[0].token_ids == (7,)


def test_line_of_another_release_is_validated() -> None:
    line = encode(exact_tree())
    checksum, schema = line.rpartition(b':"')[2].rstrip(b'"}\n').split(b"-")
    assert decode(line.replace(schema + b'"}}', b'00000000"}}')) == decode(line)
    with pytest.raises(ChecksumError):
        decode(line.replace(checksum + b"-", b"00000000-"))
    with pytest.raises(SchemaVersionError):
        decode(line.replace(b'"schema_version":1', b'"schema_version":7'))
    old = exact_tree()
    assert decode(old.line()) == old
    assert encode(old.model_copy(update={"metadata": {LINE_CHECKSUM: "x"}})) == encode(old)


def test_parquet_is_read_like_lines(tmp_path: Path) -> None:
    records = [exact_tree(sample=i, metadata={"i": i}) for i in range(2500)]
    store = tmp_path / "store"
    store.mkdir()
    assert parquet.write_lines(store / "00003.parquet", (encode(r).rstrip() for r in records)) == 2500
    with TrajectoryWriter(store) as writer:
        writer.append(later := exact_tree())
    assert [path.name for path in shards(store)] == ["00003.parquet", "00004.jsonl"]
    assert load(store) == [*records, later]
    assert [decode(line).sample for line in parquet.read_rows(store / "00003.parquet", first=2498)] == [2498, 2499]
    with pytest.raises(ConfigError, match="exists"):
        parquet.write_lines(store / "00003.parquet", [])
    parquet.write_lines(store / "00003.parquet", [b'{"task": 3}', encode(records[0]).rstrip()], replace=True)
    assert [fault.kind for fault in check_store(store, repair=True).faults] == ["unreadable"]
    assert load(store, strict=True) == [records[0], later]
    (store / "00003.parquet").write_bytes(b"PAR1 no Parquet")
    with pytest.raises(RecordError, match=r"00003\.parquet: damaged"):
        load(store)
