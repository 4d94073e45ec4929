"""`r3agent data ...`: work on stored trajectories."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from r3agent.cli.command import Output, switch, verb
from r3agent.store.check import check_store

MAX_SHOWN = 20
"""Number of lines of each kind that the text lists."""


@verb()
def check(
    run: Annotated[str, Parameter(help="Run directory, or its trajectories/.")],
    /,
    *,
    repair: Annotated[
        bool, switch("Mend records and take out other lines; each original stays beside its file, as NAME.jsonl.bak.")
    ] = False,
) -> Output:
    found = check_store(run, repair=repair)
    lines = [f"{found.records} trajectories and {found.labels} labels in {found.directory}"]
    lines += _some(
        [f"{fault.file}:{fault.line}: {fault.kind.replace('_', ' ')}: {fault.detail}" for fault in found.faults]
    )
    if found.duplicates:
        lines.append(f"{len(found.duplicates)} ids of several trajectories, of which the first counts:")
        lines += _some([f"  {id_}" for id_ in found.duplicates])
    if found.unknown_labels:
        lines.append(f"{len(found.unknown_labels)} labels of trajectories or spans that are not here:")
        lines += _some([f"  {place}" for place in found.unknown_labels])
    lines += [f"repaired; the original is {backup}" for backup in found.backups]
    n = len(found.faults)
    if found.ok:
        lines.append("nothing is left to repair" if found.backups else "every line is a sound record")
    elif repair:
        lines.append("lines of another version of r3agent stay: open the run with the version that wrote them")
    else:
        lines.append(f"{n} lines need attention; r3agent data check {run} --repair mends or takes out what it can")
    return Output({**found.model_dump(mode="json"), "ok": found.ok}, "\n".join(lines), ok=found.ok)


def _some(lines: list[str]) -> list[str]:
    more = len(lines) - MAX_SHOWN
    return lines[:MAX_SHOWN] + ([f"  and {more} more; --json lists them all"] if more > 0 else [])
