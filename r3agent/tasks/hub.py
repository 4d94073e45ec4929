"""Rows of a data set on the hub, or of a local directory such as a clone of one.

`datasets` finds the files and their splits, and downloads them; JSON and CSV are read by `rows.py`. Data is never
executed: loading scripts, pickles and `trust_remote_code` are not supported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

from r3agent._util.console import without_bars
from r3agent._util.imports import require_extra
from r3agent.errors import ConfigError
from r3agent.tasks.rows import Rows, file_rows, joined, naming, numbered

FORMATS = ("arrow", "csv", "json", "parquet", "text")
"""Supported formats of a hub data set."""

SAVED = ("state.json", "dataset_dict.json")
"""Files that mark a directory that `save_to_disk` of `datasets` has written."""

_PATTERN = re.compile(r"[\[\]*?]")

Splits: TypeAlias = Mapping[str, Sequence[Callable[[], Rows]]]
"""Readers of each split's files."""


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
        encoding: encoding of its text files, as in `file_rows`.
        delimiter: delimiter of its CSV files, as in `file_rows`.

    Raises:
        ConfigError: it cannot be reached or read, or its format is not supported.
    """
    require_extra("datasets", "data")
    import datasets

    where, directory = f"hf:{name}", Path(name).expanduser()
    read = partial(file_rows, encoding=encoding, delimiter=delimiter)
    with naming(where), without_bars(datasets), ExitStack() as links:
        if directory.is_dir():
            named = [data_files] if isinstance(data_files, str) else data_files or []
            if named and all((directory / file).is_file() for file in named):
                return _rows({"train": [partial(read, str(directory / file)) for file in named]}, hf_split, where)
            if any((directory / file).is_file() for file in SAVED):
                saved = datasets.load_from_disk(str(directory))
                tables = saved if isinstance(saved, dict) else {"train": saved}
                parts = {str(split): [partial(_table_rows, where, table)] for split, table in tables.items()}
                return _rows(parts, hf_split, where)
            name = str(directory)
            if _PATTERN.search(str(directory.resolve())):
                name = links.enter_context(_linked(directory))
        builder = _builder(name, where, subset=subset, revision=revision, data_files=data_files)
        kind = _format(builder, where)
        files = {str(split): [*found] for split, found in (builder.config.data_files or {}).items()}
        is_local = all(Path(file).is_file() for found in files.values() for file in found)
        if files and (kind in ("csv", "json") or (kind == "parquet" and is_local)):
            at: Any = datasets.DownloadManager(dataset_name=name).download(files)
            parts = {
                split: [
                    partial(read, _original(file), kind=f".{kind}", content_at=str(path))
                    for file, path in zip(found, at[split], strict=True)
                ]
                for split, found in files.items()
            }
            return _rows(parts, hf_split, where)
        builder.download_and_prepare(download_mode="force_redownload" if files and is_local else None)
        table = builder.as_dataset(split=_split([*(builder.info.splits or ())], hf_split, where))
        return _table_rows(where, table)


@contextmanager
def _linked(directory: Path) -> Generator[str]:
    """Make a directory of links to the files of one whose path `datasets` would read as a pattern."""
    with TemporaryDirectory() as links:
        for file in directory.resolve().rglob("*"):
            if file.is_file():
                link = Path(links, *(_PATTERN.sub("_", part) for part in file.relative_to(directory.resolve()).parts))
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file)
        yield links


def _original(file: str) -> str:
    """Return the file that a link of `_linked` leads to, for messages."""
    return str(Path(file).resolve()) if Path(file).is_symlink() else file


def _builder(name: str, where: str, *, subset: str | None, revision: str | None, data_files: Any) -> Any:
    import datasets

    try:
        return datasets.load_dataset_builder(name, name=subset, revision=revision, data_files=data_files)
    except ValueError as error:
        if "Config name is missing" not in str(error):
            raise
        subsets = datasets.get_dataset_config_names(name, revision=revision)
        raise ConfigError(f"{where} has the subsets {', '.join(subsets)}: choose with task.params.subset") from None


def _format(builder: Any, where: str) -> str:
    modules = [base.__module__ for base in type(builder).__mro__]
    for known in FORMATS:
        if f"datasets.packaged_modules.{known}.{known}" in modules:
            return known
    raise ConfigError(
        f"{where} is read by {modules[0]}; only {', '.join(FORMATS)} are read here: convert it to Parquet"
    )


def _rows(splits: Splits, hf_split: str | None, where: str) -> Rows:
    """Read the splits that `hf_split` names, in its order; only slices of them are held in memory."""
    from datasets import ReadInstruction

    wanted = _split([*splits], hf_split, where)
    parts = {name: joined(*(read() for read in files)) for name, files in splits.items() if name in wanted}
    if wanted in parts:
        return parts[wanted]
    rows = {name: [*part.rows] for name, part in parts.items()}
    slices = ReadInstruction.from_spec(wanted).to_absolute({name: len(rows.get(name, ())) for name in splits})
    return joined(*(Rows(parts[s.splitname].columns, rows[s.splitname][s.from_ : s.to]) for s in slices))


def _split(known: list[str], hf_split: str | None, where: str) -> str:
    if hf_split is None and "train" not in known and len(known) > 1:
        raise ConfigError(f"{where} has the splits {', '.join(known)}: choose with task.params.hf_split")
    return hf_split or ("train" if "train" in known else known[0])


def _table_rows(where: str, table: Any) -> Rows:
    """Read a data set as it is stored: images and audio stay bytes, and need no package that reads them."""
    return Rows(tuple(table.column_names), numbered(where, table.with_format("arrow").iter(1000)))
