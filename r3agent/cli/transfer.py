"""`r3agent data export` and its like: stored trajectories in the formats of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from r3agent.cli.command import Output, verb
from r3agent.data.exporting import Format, TrlType
from r3agent.data.exporting import export as write
from r3agent.records.credit import CreditLabel
from r3agent.run.config import load_config
from r3agent.run.split_guard import SplitGuard
from r3agent.store.shards import CONFIG_FILE, store_at
from r3agent.store.trajectories import load


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
    trajectories = load(run)
    if (run / CONFIG_FILE).is_file() and store_at(run) != run:
        trajectories = SplitGuard(run, load_config(run / CONFIG_FILE, {})).with_splits(trajectories)
    found = write(trajectories, out, to=to, label=label, type=type_)
    unit = {"hf": "episodes", "trl": "rows", "art": "groups"}[to]
    lines = [f"{found.rows} {unit} of {found.episodes} episodes are in {found.path}"]
    if found.left_out:
        lines.append("left out: " + ", ".join(f"{reason} {n}" for reason, n in found.left_out.items()))
    return Output(found.model_dump(mode="json"), "\n".join(lines))
