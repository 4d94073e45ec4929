"""`r3agent data export` and its like: stored trajectories in the formats of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from r3agent._util.console import size
from r3agent._util.messages import count
from r3agent.cli.command import Output, next_step, verb
from r3agent.data.compaction import compact as pack
from r3agent.data.exporting import Format, TrlType
from r3agent.data.exporting import export as write
from r3agent.data.importing import import_logs
from r3agent.data.merging import merge as join
from r3agent.records.credit import CreditLabel
from r3agent.run.config import load_config
from r3agent.run.split_guard import SplitGuard
from r3agent.store.batches import StoredTrajectories
from r3agent.store.shards import CONFIG_FILE, store_at

MAX_SHOWN = 20
"""Number of rows that the text lists."""


@verb()
def export(
    run: Annotated[Path, Parameter(help="Run directory, or a store.")],
    /,
    *,
    to: Annotated[Format, Parameter(help="hf: datasets; trl: TRL; art: OpenPipe ART.")],
    out: Annotated[str, Parameter(help="New file; for hf a directory, or a file that ends in .parquet.")],
    label: Annotated[CreditLabel, Parameter(help="Label of the groups that trl and art are made from.")] = "reflect",
    type_: Annotated[TrlType, Parameter(name="--type", help="Type of the dataset of TRL.")] = "prompt-completion",
) -> Output:
    trajectories = StoredTrajectories(run)
    if (run / CONFIG_FILE).is_file() and store_at(run) != run:
        trajectories = StoredTrajectories(run, SplitGuard(run, load_config(run / CONFIG_FILE, {})).with_splits)
    found = write(trajectories, out, to=to, label=label, type=type_)
    unit = {"hf": "episode", "trl": "row", "art": "group"}[to]
    lines = [f"{found.path} has {count(found.rows, unit)} of {count(found.episodes, 'episode')}"]
    if found.left_out:
        lines.append("left out: " + ", ".join(f"{reason} {n}" for reason, n in found.left_out.items()))
    return Output(found.model_dump(mode="json"), "\n".join(lines))


@verb()
def import_(
    *files: Annotated[str, Parameter(name="FILE", help="File of JSON, JSON lines or Parquet, also compressed.")],
    out: Annotated[str, Parameter(help="Run directory or store to write into.")],
    outcome: Annotated[
        str | None, Parameter(help="Name of the outcome in a row or its metadata, or of the score or feedback.")
    ] = None,
    pass_at: Annotated[float, Parameter(help="Smallest number that passes.")] = 1.0,
    version: Annotated[str | None, Parameter(help="Policy version that answered, such as v0000, if one did.")] = None,
) -> Output:
    found = import_logs(files, out, outcome=outcome, pass_at=pass_at, version=version)
    kinds = ", ".join(f"{n} {kind}" for kind, n in found.kinds.items())
    lines = [
        f"{count(found.episodes, 'episode')} imported into {found.directory}{f' ({kinds})' if kinds else ''}",
        *([f"{found.stored_before} were there before"] if found.stored_before else []),
        *([f"{found.unlabelled} have no outcome"] if found.unlabelled else []),
    ]
    if found.left_out:
        lines += [f"rows left out: {len(found.left_out)}", *(f"  {why}" for why in found.left_out[:MAX_SHOWN])]
    lines.append(f"next: {next_step('data', 'stats', out)}")
    return Output(found.model_dump(mode="json"), "\n".join(lines))


@verb()
def merge(
    *stores: Annotated[str, Parameter(name="STORE", help="Run directory, or a store; at least two.")],
    out: Annotated[str, Parameter(help="New store.")],
) -> Output:
    found = join(stores, out)
    lines = [f"{found.directory} has {count(found.episodes, 'episode')} and {count(found.labels, 'label')}"]
    if found.copies:
        lines.append(f"{found.copies} were in several, and are there once")
    if found.conflicts:
        lines.append(f"ids of different episodes, of which the first store's are there: {len(found.conflicts)}")
        lines += [f"  {id_}" for id_ in found.conflicts[:MAX_SHOWN]]
    if found.unreadable:
        lines.append(f"lines that are no records, left out: {found.unreadable}; r3agent data check lists them")
    return Output(found.model_dump(mode="json"), "\n".join(lines))


@verb()
def compact(run: Annotated[str, Parameter(help="Run directory, or a store.")], /) -> Output:
    found = pack(run)
    lines = [
        f"{count(found.sources, 'shard')} with {count(found.lines, 'line')} became {len(found.files)} "
        f"in {found.directory}: {size(found.bytes_before)} became {size(found.bytes_after)}",
        *(f"  {path} stays: {why}" for path, why in found.skipped.items()),
    ]
    return Output(found.model_dump(mode="json"), "\n".join(lines))
