"""Rows of external data: a file of JSON, CSV or Parquet, a directory of them, or a data set on the hub.

JSON is parsed directly, because `datasets` converts text that looks like a date; CSV cells stay text. `datasets` reads
the rest, with the types that it infers. Data is never executed: loading scripts, pickles and `trust_remote_code` are
not supported.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from r3agent._util.imports import require_extra
from r3agent.errors import ConfigError

ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")
"""Supported file name endings."""

FORMATS = ("arrow", "csv", "json", "parquet", "text")
"""Supported formats of a directory or a hub data set."""


class Row(NamedTuple):
    """Row of a data source, with its location."""

    where: str
    values: dict[str, Any]


class Rows(NamedTuple):
    """All rows of a source; they can be iterated over once."""

    columns: tuple[str, ...]
    rows: Iterable[Row]


def file_rows(path: str) -> Rows:
    """Read a file.

    Raises:
        ConfigError: the file is missing, or its content does not match its ending.
    """
    if not Path(path).is_file():
        raise ConfigError(f"task file {path}: there is no such file; name one with --task")
    if path.endswith(".csv"):
        return _table(path, "csv", features=_all_text(path), keep_default_na=False)
    if path.endswith(".parquet"):
        return _table(path, "parquet")
    rows = list(_json_rows(path))
    return Rows(tuple(dict.fromkeys(column for row in rows for column in row.values)), rows)


def hub_rows(
    name: str,
    *,
    subset: str | None = None,
    hf_split: str | None = None,
    revision: str | None = None,
    data_files: str | list[str] | None = None,
) -> Rows:
    """Read a data set from the hub by name, or from a local directory.

    Args:
        hf_split: split of the data set, e.g. `train+test` or `train[:1000]`; default `train`, or the only one.

    Raises:
        ConfigError: it cannot be reached or read, or its format is not supported.
    """
    return _table(f"hf:{name}", name, hf_split, name=subset, revision=revision, data_files=data_files)


def _table(where: str, kind: str, hf_split: str | None = None, **settings: Any) -> Rows:
    """Read with `datasets`; `kind` is the path or the name of a format."""
    require_extra("datasets", "data")
    import datasets
    from datasets import load_dataset_builder

    files = {} if where.startswith("hf:") else {"data_files": where}
    with _naming(where), _without_bars(datasets):
        builder = load_dataset_builder(kind, **files, **settings)
        found = [base.__module__ for base in type(builder).__mro__]
        if not any(module.startswith(f"datasets.packaged_modules.{known}.") for module in found for known in FORMATS):
            raise ConfigError(
                f"{where} is read by {found[0]}; only {', '.join(FORMATS)} are read here: convert it to Parquet"
            )
        builder.download_and_prepare()
        own = list(builder.info.splits or ())
        if hf_split is None and "train" not in own and len(own) > 1:
            raise ConfigError(f"{where} has the splits {', '.join(own)}: choose with task.params.hf_split")
        table: Any = builder.as_dataset(split=hf_split or ("train" if "train" in own else own[0]))
    return Rows(tuple(table.column_names), _numbered(where, table))


def _numbered(where: str, table: Iterable[dict[str, Any]]) -> Iterator[Row]:
    with _naming(where):
        for number, values in enumerate(table, start=1):
            yield Row(f"{where} row {number}", values)


def _json_rows(path: str) -> Iterator[Row]:
    with _naming(path):
        content = gzip.decompress(Path(path).read_bytes()) if path.endswith(".gz") else Path(path).read_bytes()
    if path.endswith(".json"):
        with _naming(path):
            data = orjson.loads(content)
        if not isinstance(data, list):
            raise ConfigError(
                f"{path} is a JSON {type(data).__name__}; it must be an array of objects, or name it .jsonl"
            )
        numbered = ((f"{path} row {number}", value) for number, value in enumerate(data, start=1))
    else:
        lines = ((f"{path}:{number}", line) for number, line in enumerate(content.splitlines(), start=1))
        numbered = ((where, _parsed(where, line)) for where, line in lines if line.strip())
    for where, value in numbered:
        if not isinstance(value, dict):
            raise ConfigError(f"{where} is a JSON {type(value).__name__}; every row must be an object")
        yield Row(where, value)


def _parsed(where: str, line: bytes) -> Any:
    with _naming(where):
        return orjson.loads(line)


def _all_text(path: str) -> Any:
    """Return features that make all columns of a CSV file text; otherwise 007 becomes a number and NA null."""
    require_extra("datasets", "data")
    from datasets import Features, Value

    with _naming(path), Path(path).open(newline="", encoding="utf-8-sig") as file:
        header = next(csv.reader(file), [])
    if not header or len(set(header)) < len(header) or not all(header):
        raise ConfigError(f"{path}: the first line must name every column once, and is {header}")
    return Features({column: Value("string") for column in header})


@contextmanager
def _naming(where: str) -> Generator[None]:
    """Convert a reader's exceptions to a `ConfigError` that names the source."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # from a dozen libraries and the network
        cause = error.__cause__ or error
        reaching = where.startswith("hf:") and isinstance(error, OSError)
        remedy = "check the name and the network; what was downloaded before is taken from the cache"
        reason = f"{type(cause).__name__}: {str(cause).strip() or 'no reason given'}"
        raise ConfigError(f"{where}: {reason}; {remedy if reaching else 'mend it, or name another'}") from error


@contextmanager
def _without_bars(datasets: Any) -> Generator[None]:
    """Disable progress bars, which do not belong in a program's log."""
    were_enabled = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_enabled:
            datasets.enable_progress_bars()
