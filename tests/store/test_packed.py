"""Lines in Parquet: each is read as it was written, and records are equal, with tokens of any kind."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet as arrow

from r3agent import load
from r3agent.data import stats
from r3agent.errors import RecordError, SchemaVersionError
from r3agent.records.trajectory import Trajectory
from r3agent.store import parquet
from r3agent.store.batches import StoredTrajectories
from r3agent.store.check import check_store
from r3agent.store.lines import crc_of, decode, encode
from r3agent.store.packed import Packed, pack
from tests.support.trees import span, trajectories, tree

IDS = st.none() | st.lists(st.integers(-(2**31), 2**31 - 1) | st.integers(0, 2**40), max_size=4).map(tuple)
LIKE_TOKENS: dict[str, Any] = {"prompt_token_ids": [], "token_ids": [2, "]"], "logprobs": [-0.5, None], "é": 2**70}


@st.composite
def spans(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the tokens of a span, and free-form fields that have such keys too."""
    ids = draw(IDS)
    logprob = st.floats(-9998, 0) | st.floats(-9998, 0, width=32)
    logprobs = st.lists(logprob, min_size=len(ids or ()), max_size=len(ids or ())).map(tuple)
    return {
        "prompt_token_ids": draw(IDS),
        "token_ids": ids,
        "logprobs": None if ids is None else draw(st.none() | logprobs),
        "sampling": draw(st.sampled_from([{}, {"seed": 2**62}, LIKE_TOKENS, {"token_ids": 1}])),
    }


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(trajectories(), st.lists(spans(), min_size=1, max_size=4), st.sampled_from([{}, LIKE_TOKENS, {"spans": [1]}]))
def test_packed_line_is_read_as_the_line(
    trajectory: Trajectory, fields: list[dict[str, Any]], metadata: dict[str, Any]
) -> None:
    record = tree(*(span("attempt", passed=False).model_copy(update=each) for each in fields))
    for line in map(encode, (trajectory, record.changed(metadata=metadata))):
        line = line.rstrip()
        if (packed := pack(line)) is not None:
            assert bytes(packed) == line
            assert crc_of(packed) == crc_of(line)
            assert decode(packed) == decode(line) == Trajectory.of_line(line)
            assert decode(packed).model_dump_json() == Trajectory.of_line(line).model_dump_json()
            for read, written in zip(decode(packed).spans, Trajectory.of_line(line).spans, strict=True):
                assert [read.logprobs, read.token_ids] == [written.logprobs, written.token_ids]
                assert type(read.prompt_token_ids) is type(written.prompt_token_ids)


def exact(ids: tuple[int, ...], logprobs: tuple[float, ...], **fields: Any) -> Trajectory:
    tokens: dict[str, Any] = {
        "prompt_token_ids": ids,
        "token_ids": ids,
        "logprobs": logprobs,
        "capability": "trainable-exact",
    }
    return tree(span("attempt", passed=False, **tokens)).changed(**fields)


def test_pack_takes_exact_tokens_out_of_the_json() -> None:
    logprobs = (-0.0, -5e-324, -1e-7, -0.1, struct.unpack("f", b"\x01\x02\x03\xbe")[0], -9998.999999999998)
    packed = pack(encode(exact((0, 1, -1, 50_000, 2**31 - 1, 7), logprobs)).rstrip())
    assert isinstance(packed, Packed)
    assert (
        b"[" not in packed.json.partition(b'"spans":[')[2].partition(b'"sampling"')[0].partition(b'"tool_calls":[]')[2]
    )
    (read,) = decode(packed).spans
    assert list(map(repr, read.logprobs or ())) == list(map(repr, logprobs))
    assert read.prompt_token_ids == (0, 1, -1, 50_000, 2**31 - 1, 7)


@pytest.mark.parametrize("ids", [(2**31,), (2**64 - 1,), (-(2**31) - 1,)])
def test_pack_leaves_a_line_with_large_ids_whole(ids: tuple[int, ...], tmp_path: Path) -> None:
    record = exact(ids, (-1.0,))
    assert pack(encode(record).rstrip()) is None
    parquet.write_lines(tmp_path / "00000.parquet", [encode(record).rstrip()])
    assert load(tmp_path) == [record]


@pytest.mark.parametrize("array", [b"[null]", b"[-1]", b"[NaN]", b'["a"]', b"[-0.50]", b"[1e400]", b"[[1]]", b"[true]"])
def test_pack_leaves_a_line_of_another_program_whole(array: bytes) -> None:
    assert pack(encode(exact((1,), (-0.5,))).rstrip().replace(b"[-0.5]", array)) is None


def test_parquet_of_each_format_is_read_by_all_readers(tmp_path: Path) -> None:
    records = [exact((i, 1), (-i / 3, -1.0), sample=i) for i in range(5)]
    lines = [encode(record).rstrip() for record in records]
    tmp_path.joinpath("old").mkdir()
    tmp_path.joinpath("new").mkdir()
    table = pyarrow.table({"line": pyarrow.array(lines, pyarrow.string())})
    arrow.write_table(table, tmp_path / "old" / "00000.parquet", compression="zstd")
    parquet.write_lines(tmp_path / "new" / "00000.parquet", lines)
    for name, kind in (("old", bytes), ("new", Packed)):
        store = tmp_path / name
        assert {type(line) for line in parquet.read_rows(store / "00000.parquet")} == {kind}
        assert [*parquet.read_lines(store / "00000.parquet")] == lines
        assert load(store) == [*StoredTrajectories(store)] == records
        assert [*StoredTrajectories(store)] == records  # by the index
        assert check_store(store).ok
        assert stats(store).episodes == 5


def test_rows_in_any_order_decompress_each_group_once(tmp_path: Path) -> None:
    lines, path = [b'{"n":%d}' % n for n in range(3 * parquet.GROUP_ROWS + 5)], tmp_path / "00000.parquet"
    parquet.write_lines(path, lines)
    order = random.Random(0).sample(range(len(lines)), len(lines))
    reader = parquet.RowGroups()
    assert [bytes(reader.line(path, row)) for row in order] == [lines[row] for row in order]
    assert reader.n_read == 4
    assert [bytes(reader.line(path, row)) for row in (-1, len(lines))] == [b"", b""]
    parquet.write_lines(path, [b"{}"], replace=True)
    assert [bytes(reader.line(path, row)) for row in (0, 1)] == [b"{}", b""]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RecordError, match="damaged"):
        reader.line(path, 0)


def test_parquet_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    table = pyarrow.table({"other": ["x"]}).replace_schema_metadata({"r3agent.format": "3"})
    arrow.write_table(table, tmp_path / "00000.parquet")
    with pytest.raises(
        SchemaVersionError, match=r"00000\.parquet: a shard of format 3, .* up to 2; open the store with"
    ):
        load(tmp_path)
    arrow.write_table(pyarrow.table({"other": ["x"]}), tmp_path / "00000.parquet")
    with pytest.raises(RecordError, match="no column 'line', so it is no shard"):
        load(tmp_path)


def test_parquet_with_damaged_tokens_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "00000.parquet"
    line = encode(exact(tuple(range(1000, 2000)), (-0.123456789,) * 1000)).rstrip()
    parquet.write_lines(path, [line])
    column: Any = arrow.ParquetFile(path).metadata.row_group(0).column(1)
    content = bytearray(path.read_bytes())
    content[column.data_page_offset + column.total_compressed_size - 9] ^= 1
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"00000\.parquet: damaged"):
        load(tmp_path)
