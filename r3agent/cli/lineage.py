"""`r3agent lineage`: the episodes that a version was trained on."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from r3agent._util.console import columns
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
    lines = [f"{found.version} and its ancestors were trained on {found.episodes} episodes"]
    lines += columns([_row(trained) for trained in found.versions], gap=3, indent=2)
    newest = next((trained.episodes for trained in found.versions if trained.episodes), ())
    lines += [f"  {id_}" for id_ in newest[:MAX_IDS]]
    if found.episodes > MAX_IDS:
        lines.append("  ...; --json lists them all")
    lines += columns([(f"{by} {value}", f"{n} episodes") for value, n in found.by.items()], gap=3, indent=2)
    if found.forgotten:
        lines.append(
            f"{len(found.forgotten)} of them were forgotten since, and the weights were not changed: "
            f"{', '.join(found.forgotten[:MAX_IDS])}; train anew from an earlier version"
        )
    return Output(found.model_dump(mode="json"), "\n".join(lines))


def _row(trained: Trained) -> tuple[str, ...]:
    origin = f"from {trained.parent}" if trained.parent else trained.kind
    if trained.episodes is None:
        return trained.version, origin, "" if trained.kind == "base" else "its episodes were not written down", ""
    labels = ", ".join(f"{n} {label}" for label, n in trained.labels.items())
    return trained.version, origin, f"{len(trained.episodes)} episodes", labels
