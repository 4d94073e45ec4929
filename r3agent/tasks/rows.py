"""Rows of files of JSON, CSV or Parquet, with the values that are in them.

`datasets` is not used to read them: it converts text that looks like a date or a number, takes `[1]` in a path for a
pattern, and keeps the rows of a file that has changed. Data is never executed.
"""

from __future__ import annotations

import io
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from r3agent._util.imports import require_extra
from r3agent.errors import ConfigError
from r3agent.tasks.text_files import ENDINGS, PACKED, Row, csv_rows, ending, file_text, json_rows, unpacked

LFS = b"version https://git-lfs"
"""Beginning of a file whose content Git LFS has not fetched."""

ROWS = 1024
"""Number of rows of a table in Parquet that are converted at a time."""


class Rows(NamedTuple):
    """All rows of a source; they can be iterated over once."""

    columns: tuple[str, ...]
    rows: Iterable[Row]


def file_rows(name: str, *, encoding: str = "", delimiter: str = "", kind: str = "", content_at: str = "") -> Rows:
    """Read a file.

    Args:
        encoding: encoding of a text file; default UTF-8, or what its byte order mark says.
        delimiter: separator of a CSV file's cells; default the one in its header.
        kind: ending that the file is read by if its name has none of `ENDINGS`.
        content_at: path of the file, if `name` is a URL.

    Raises:
        ConfigError: the file is missing, or its content does not match its ending.
    """
    path = Path(content_at or name).expanduser()
    if not path.is_file():
        raise ConfigError(f"task file {name}: there is no such file; name one with --task")
    kind = ending(name) or kind
    with naming(name):
        with path.open("rb") as file:
            if file.read(len(LFS)) == LFS:
                raise ConfigError(f"{name} is a pointer of Git LFS, not the data; fetch it with: git lfs pull")
        if kind == ".parquet":
            return _parquet_rows(name, path)
        if kind:
            text = file_text(unpacked(path.read_bytes()), name, encoding)
            if kind in (".csv", ".tsv"):
                return Rows(*csv_rows(text, name, delimiter))
            rows = list(json_rows(text, name))
            return Rows(tuple(dict.fromkeys(column for row in rows for column in row.values)), rows)
    raise ConfigError(f"task file {name}: the file is none of {', '.join(ENDINGS)}; convert it to one of them")


def joined(*parts: Rows) -> Rows:
    """Join tables, with the columns of all of them."""
    columns = dict.fromkeys(chain.from_iterable(part.columns for part in parts))
    return Rows(tuple(columns), chain.from_iterable(part.rows for part in parts))


def _parquet_rows(name: str, path: Path) -> Rows:
    require_extra("pyarrow", "data")
    from pyarrow import parquet

    is_packed = path.suffix.lower() in PACKED
    file: Any = parquet.ParquetFile(io.BytesIO(unpacked(path.read_bytes())) if is_packed else path)
    return Rows(tuple(file.schema_arrow.names), numbered(name, file.iter_batches(batch_size=ROWS)))


def numbered(where: str, batches: Iterable[Any]) -> Iterator[Row]:
    """Yield the rows of Arrow's tables."""
    with naming(where):
        values = chain.from_iterable(_widened(batch).to_pylist() for batch in batches)
        for number, row in enumerate(values, start=1):
            yield Row(f"{where} row {number}", row, number)


def _widened(batch: Any) -> Any:
    """Convert narrow floats by their text: 0.1 stays 0.1, and is not 0.10000000149011612."""
    import pyarrow

    for i, field in enumerate(batch.schema):
        if field.type in (pyarrow.float16(), pyarrow.float32()):
            text = batch.column(i).cast(pyarrow.float32()).cast(pyarrow.string())
            batch = batch.set_column(i, field.name, text.cast(pyarrow.float64()))
    return batch


@contextmanager
def naming(where: str) -> Generator[None]:
    """Convert a reader's exceptions to a `ConfigError` that names the source."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # from a dozen libraries and the network
        cause = error.__cause__ or error
        reaching = where.startswith("hf:") and isinstance(error, OSError)
        remedy = "check the name and the network; what was downloaded before is taken from the cache"
        reason = f"{type(cause).__name__}: {' '.join(str(cause).split()) or 'no reason given'}"
        raise ConfigError(f"{where}: {reason}; {remedy if reaching else 'mend it, or name another'}") from error
