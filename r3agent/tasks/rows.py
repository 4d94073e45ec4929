"""Rows of external data: a file of JSON, CSV or Parquet, a directory of them, or a data set on the hub.

Files are read here, with the values that are in them: `datasets` converts text that looks like a date or a number,
takes `[1]` in a path for a pattern, and keeps rows of a file that has changed. It finds the files of a directory, and
reads the hub. Data is never executed: loading scripts, pickles and `trust_remote_code` are not supported.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from r3agent._util.imports import require_extra
from r3agent.errors import ConfigError
from r3agent.tasks.text_files import ENDINGS, PACKED, Row, csv_rows, ending, json_rows, unpacked

FORMATS = ("arrow", "csv", "json", "parquet", "text")
"""Supported formats of a hub data set."""


class Rows(NamedTuple):
    """All rows of a source; they can be iterated over once."""

    columns: tuple[str, ...]
    rows: Iterable[Row]


def file_rows(name: str, *, encoding: str = "", delimiter: str = "") -> Rows:
    """Read a file.

    Args:
        encoding: encoding of a text file; default UTF-8, or what its byte order mark says.
        delimiter: separator of a CSV file's cells; default the one in its header.

    Raises:
        ConfigError: the file is missing, or its content does not match its ending.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        raise ConfigError(f"task file {name}: there is no such file; name one with --task")
    kind = ending(name)
    with _naming(name):
        if kind == ".parquet":
            return _parquet_rows(path)
        if kind in (".csv", ".tsv"):
            return Rows(*csv_rows(path, encoding, delimiter))
        if kind:
            return _joined(Rows((), list(json_rows(path, encoding))))
    raise ConfigError(f"task file {name}: the file is none of {', '.join(ENDINGS)}; convert it to one of them")


def hub_rows(
    name: str,
    *,
    subset: str | None = None,
    hf_split: str | None = None,
    revision: str | None = None,
    data_files: str | list[str] | None = None,
    encoding: str = "",
    delimiter: str = "",
) -> Rows:
    """Read a data set from the hub by name, or from a local directory.

    Args:
        hf_split: split of the data set, e.g. `train+test` or `train[:1000]`; default `train`, or the only one.
        encoding: encoding of local files, as in `file_rows`.
        delimiter: delimiter of local files, as in `file_rows`.

    Raises:
        ConfigError: it cannot be reached or read, or its format is not supported.
    """
    require_extra("datasets", "data")
    import datasets
    from datasets import load_dataset_builder

    where, directory = f"hf:{name}", Path(name).expanduser()
    is_local = directory.is_dir()
    read = partial(file_rows, encoding=encoding, delimiter=delimiter)
    named = [data_files] if isinstance(data_files, str) else data_files or []
    if is_local and named and all((directory / file).is_file() for file in named):
        return _slice({"train": [str(directory / file) for file in named]}, hf_split, where, read)
    if is_local and (special := sorted(set("[]*?") & {*str(directory.resolve())})):
        raise ConfigError(f"{where}: the path has {special[0]!r} in it, which makes it a pattern; rename the directory")
    settings: Any = {"name": subset, "revision": revision, "data_files": data_files}
    with _naming(where), _without_bars(datasets):
        kind = str(directory) if is_local else name
        try:
            builder: Any = load_dataset_builder(kind, **settings)
        except ValueError as error:
            if "Config name is missing" not in str(error):
                raise
            subsets = datasets.get_dataset_config_names(kind, revision=revision)
            raise ConfigError(
                f"{where} has the subsets {', '.join(subsets)}: choose with task.params.subset"
            ) from error
        files = {str(split): [*found] for split, found in (builder.config.data_files or {}).items()}
        if files and all(Path(file).is_file() for found in files.values() for file in found):
            return _slice(files, hf_split, where, read)
        found = [base.__module__ for base in type(builder).__mro__]
        if not any(module.startswith(f"datasets.packaged_modules.{known}.") for module in found for known in FORMATS):
            raise ConfigError(
                f"{where} is read by {found[0]}; only {', '.join(FORMATS)} are read here: convert it to Parquet"
            )
        if "datasets.packaged_modules.csv.csv" in found:  # 007 would become a number, and NA null
            builder = load_dataset_builder(kind, **settings, dtype="str", keep_default_na=False)
        builder.download_and_prepare()
        table: Any = builder.as_dataset(split=_split([*(builder.info.splits or ())], hf_split, where))
        return Rows(tuple(table.column_names), _numbered(where, _batches(table)))


def _slice(files: dict[str, list[str]], hf_split: str | None, where: str, read: Callable[[str], Rows]) -> Rows:
    """Read the files of the splits that `hf_split` names, in its order."""
    from datasets import ReadInstruction

    with _naming(where):
        wanted = _split([*files], hf_split, where)
        parts = {name: _joined(*map(read, files[name])) for name in files if name in wanted}
        rows = {name: [*part.rows] for name, part in parts.items()}
        lengths = {name: len(rows.get(name, ())) for name in files}
        slices = ReadInstruction.from_spec(wanted).to_absolute(lengths)
        taken = [Rows(parts[s.splitname].columns, rows[s.splitname][s.from_ : s.to]) for s in slices]
        return _joined(*taken)


def _split(known: list[str], hf_split: str | None, where: str) -> str:
    if hf_split is None and "train" not in known and len(known) > 1:
        raise ConfigError(f"{where} has the splits {', '.join(known)}: choose with task.params.hf_split")
    return hf_split or ("train" if "train" in known else known[0])


def _joined(*parts: Rows) -> Rows:
    """Join tables; columns are those of any row."""
    rows = [row for part in parts for row in part.rows]
    named = chain(chain.from_iterable(part.columns for part in parts), (c for row in rows for c in row.values))
    return Rows(tuple(dict.fromkeys(named)), rows)


def _parquet_rows(path: Path) -> Rows:
    require_extra("pyarrow", "data")
    from pyarrow import parquet

    file: Any = parquet.ParquetFile(io.BytesIO(unpacked(path)) if path.suffix.lower() in PACKED else path)
    return Rows(tuple(file.schema_arrow.names), _numbered(str(path), file.iter_batches()))


def _batches(table: Any) -> Iterator[Any]:
    """Yield a data set's rows as they are stored: images and audio stay bytes, and need no package that reads them."""
    yield from table.with_format("arrow").iter(1000)


def _numbered(where: str, batches: Iterable[Any]) -> Iterator[Row]:
    with _naming(where):
        values = chain.from_iterable(batch.to_pylist() for batch in batches)
        for number, row in enumerate(values, start=1):
            yield Row(f"{where} row {number}", row, number)


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
        reason = f"{type(cause).__name__}: {' '.join(str(cause).split()) or 'no reason given'}"
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
