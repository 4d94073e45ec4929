"""`r3agent lineage`: the episodes that a version was trained on."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from r3agent._util.console import columns
from r3agent._util.messages import count
from r3agent.cli.command import DEFAULT_RUN, Output, RunFlag, verb
from r3agent.data.ancestry import Trained
from r3agent.data.ancestry import lineage as trace_back

MAX_IDS = 10
"""Number of ids that the text lists."""


@verb()
def lineage(
    version: Annotated[str, Parameter(help="Version, such as v0007.")],
    /,
    *,
    run: RunFlag = DEFAULT_RUN,
    by: Annotated[str | None, Parameter(help="Key of the metadata to count the episodes by, such as user.")] = None,
) -> Output:
    found = trace_back(run, version, by=by)
    lines = [f"{found.version} and its ancestors were trained on {count(found.episodes, 'episode')}"]
    lines += columns([_row(trained) for trained in found.versions], gap=3, indent=2)
    newest = next((trained.episodes for trained in found.versions if trained.episodes), ())
    lines += [f"  {id_}{'  forgotten' if id_ in found.forgotten else ''}" for id_ in newest[:MAX_IDS]]
    if found.episodes > MAX_IDS:
        lines.append("  ...; --json lists them all")
    lines += columns([(f"{by} {value}", count(n, "episode")) for value, n in found.by.items()], gap=3, indent=2)
    if n := len(found.forgotten):
        lines.append(
            f"{n} of them {'was' if n == 1 else 'were'} forgotten since, and the weights were not changed: "
            f"{', '.join(found.forgotten[:MAX_IDS])}; train anew from an earlier version"
        )
    return Output(found.model_dump(mode="json"), "\n".join(lines))


def _row(trained: Trained) -> tuple[str, ...]:
    origin = f"from {trained.parent}" if trained.parent else trained.kind
    if trained.episodes is None:
        return trained.version, origin, "" if trained.kind == "base" else "its episodes were not written down", ""
    labels, n = ", ".join(f"{n} {label}" for label, n in trained.labels.items()), sum(trained.labels.values())
    if trained.rows_forgotten:
        labels = f"{n} of {count(n + trained.rows_forgotten, 'row')} kept{f': {labels}' if labels else ''}"
    return trained.version, origin, count(len(trained.episodes), "episode"), labels
