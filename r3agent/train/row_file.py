"""Rows of a training in a temporary file, which is mapped into memory: a large store has more than memory holds."""

from __future__ import annotations

import mmap
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import pyarrow
from datasets import Dataset

from r3agent._util.files import disk_errors
from r3agent.errors import TrainingError
from r3agent.train.row import Row, RowLabel

IDS, TEXT = pyarrow.list_(pyarrow.int32()), pyarrow.string()
SCHEMA = pyarrow.schema(
    {
        "group_id": TEXT,
        "trajectory_id": TEXT,
        "span_id": TEXT,
        "label": TEXT,
        "policy_version": TEXT,
        "prompt_ids_P": IDS,
        "completion_ids_T": IDS,
        "logprobs_T": pyarrow.list_(pyarrow.float64()),
        "temperature": pyarrow.float64(),
        "truncated": pyarrow.bool_(),
        "reward": pyarrow.float64(),
        "advantage": pyarrow.float64(),
        "doubtful": pyarrow.bool_(),
        "sampled_T": pyarrow.list_(pyarrow.bool_()),
        "step_ids": pyarrow.list_(TEXT),
        "apart": TEXT,
    }
)
"""Columns: the fields of `Row`."""

BATCH = 1000
"""Number of rows that are written or read at once."""


class RowFile(Sequence[Row]):
    """Rows that are read when they are used; `extend` adds some until the first is read.

    The file has no name and is removed with the process. It is in the directory of temporary files, which the
    environment variable TMPDIR names, and has about 8 bytes for each token of a completion more than one for each id.
    """

    def __init__(self) -> None:
        self._where = Path(tempfile.gettempdir())
        with disk_errors(self._where):
            self._file = tempfile.TemporaryFile()  # noqa: SIM115
            weakref.finalize(self, self._file.close)
            self._writer = pyarrow.ipc.new_stream(self._file, SCHEMA)
        self._length = 0
        self._dataset: Dataset | None = None

    def extend(self, rows: Sequence[Row]) -> None:
        """Add rows.

        Raises:
            ConfigError: the disk is full.
            TrainingError: a token id is larger than any model's.
        """
        self._length += len(rows)
        try:
            for first in range(0, len(rows), BATCH):
                part = [row._asdict() for row in rows[first : first + BATCH]]
                table = pyarrow.Table.from_pylist(part, SCHEMA)
                with disk_errors(self._where):
                    self._writer.write_table(table)
        except (pyarrow.ArrowInvalid, OverflowError):
            for row in rows:
                if (largest := row.largest_id) >= 2**31:
                    raise TrainingError(
                        f"span {row.span_id} of trajectory {row.trajectory_id} has token id {largest}, limit 2**31: no "
                        "model has as many tokens; collect from a server that returns ids of its tokens"
                    ) from None
            raise

    def rescale(self, scales: Mapping[RowLabel, float]) -> None:
        """Divide the advantages by the scale of their label."""
        table = self.dataset.data.table
        pairs = zip(*(table.column(name).to_pylist() for name in ("label", "advantage")), strict=True)
        column = pyarrow.array([advantage / scales.get(label, 1.0) for label, advantage in pairs], pyarrow.float64())
        self._dataset = _dataset(table.set_column(SCHEMA.get_field_index("advantage"), "advantage", column))

    @property
    def dataset(self) -> Dataset:
        """The trainer's dataset, with one column per field, in the same file."""
        if self._dataset is None:
            with disk_errors(self._where):
                self._writer.close()
                self._file.flush()
            mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            self._dataset = _dataset(pyarrow.ipc.open_stream(pyarrow.py_buffer(mapped)).read_all())
        return self._dataset

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        return Row(**self.dataset[index])

    def __iter__(self) -> Iterator[Row]:
        for batch in self.dataset.data.table.to_batches(BATCH):
            yield from (Row(**fields) for fields in batch.to_pylist())


class Pairs(Sequence[tuple[list[int], list[int]]]):
    """Prompt ids and completion ids of some rows, which are read when they are used."""

    def __init__(self, rows: Sequence[Row], indices: Sequence[int]) -> None:
        self._rows, self._indices = rows, indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> tuple[list[int], list[int]]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[list[int], list[int]]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        row = self._rows[self._indices[index]]
        return row.prompt_ids_P, row.completion_ids_T


def _dataset(table: Any) -> Dataset:
    return Dataset(table, fingerprint="rows")  # otherwise a hash of all rows


def column(rows: Dataset, name: str) -> Iterator[Any]:
    """Yield the values of a column, which are decoded a batch at a time."""
    for batch in rows.select_columns([name]).iter(BATCH):
        values: Any = batch
        yield from values[name]
