"""`r3agent data ...`: work on stored trajectories."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from r3agent._util.console import columns, size
from r3agent._util.messages import count
from r3agent.cli.command import Output, next_step, switch, verb
from r3agent.cli.inspect_view import rate_rows, rate_text, verdict_lines
from r3agent.data.erasure import forget as erase
from r3agent.data.receipts import FOLDER
from r3agent.data.statistics import UNKNOWN, DataStats, Share
from r3agent.data.statistics import stats as count_store
from r3agent.store.check import check_store

MAX_SHOWN = 20
"""Number of lines of each kind that the text lists."""

OUTCOMES = {
    "passed": "a try is right, the first or a retry",
    "failed": "no try is right",
    "unlabelled": "the final answer has no verdict",
    "errored": "an error ended them",
}
"""Meaning of the outcomes of episodes."""


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
    lines = [f"{count(found.records, 'trajectory')} and {count(found.labels, 'label')} in {found.directory}"]
    lines += _some(
        [f"{fault.file}:{fault.line}: {fault.kind.replace('_', ' ')}: {fault.detail}" for fault in found.faults]
    )
    if found.duplicates:
        lines.append(f"{count(len(found.duplicates), 'id')} of several trajectories, of which the first counts:")
        lines += _some([f"  {id_}" for id_ in found.duplicates])
    if found.unknown_labels:
        lines.append(f"{count(len(found.unknown_labels), 'label')} of trajectories or spans that are not here:")
        lines += _some([f"  {place}" for place in found.unknown_labels])
    lines += [f"repaired; the original is {backup}" for backup in found.backups]
    n = len(found.faults)
    if found.ok:
        lines.append("nothing is left to repair" if found.backups else "every line is a sound record")
    elif repair:
        lines.append("lines of another version of r3agent stay: open the run with the version that wrote them")
    else:
        lines.append(f"{count(n, 'line')} to repair; r3agent data check {run} --repair mends or takes out what it can")
    return Output({**found.model_dump(mode="json"), "ok": found.ok}, "\n".join(lines), ok=found.ok)


@verb()
def stats(run: Annotated[str, Parameter(help="Run directory, or its trajectories/.")], /) -> Output:
    found = count_store(run)
    lines = [
        f"{count(found.episodes, 'episode')} of {count(found.tasks, 'task')} in {found.directory}: "
        f"{count(found.files, 'file')}, {size(found.bytes)}, "
        f"{count(found.tokens_sampled, 'token')} sampled, {found.tokens_prompt} of prompts",
        *columns(_rows(found), gap=3, indent=2),
        *verdict_lines(found.verdicts),
    ]
    if found.unreadable:
        lines.append(f"lines that are no records: {found.unreadable}, see {next_step('data', 'check', run)}")
    return Output(found.model_dump(mode="json"), "\n".join(lines))


@verb()
def forget(
    run: Annotated[str, Parameter(help="Run directory, or a store.")],
    /,
    *,
    episode: Annotated[
        tuple[str, ...], Parameter(help="Id of an episode, or a prefix of it; may be repeated.", show_default=False)
    ] = (),
    where: Annotated[
        str | None, Parameter(help="KEY=VALUE of the metadata, such as user=anna.", allow_leading_hyphen=True)
    ] = None,
    pattern: Annotated[
        str | None,
        Parameter(help="Regular expression, searched in every text of an episode.", allow_leading_hyphen=True),
    ] = None,
    dry_run: Annotated[bool, switch("Report what would be forgotten, and change nothing.")] = False,
) -> Output:
    receipt = erase(run, episodes=episode, where=where, pattern=pattern, dry_run=dry_run)
    n = len(receipt.episodes)
    forgotten = f"{count(n, 'episode')} {'would be' if dry_run else 'is' if n == 1 else 'are'} forgotten"
    lines = [forgotten if n or receipt.parts else f"nothing has {where or f'a match of {pattern!r}'}: {forgotten}"]
    lines += _some([f"  {id_}" for id_ in receipt.episodes])
    lines += [f"  {file.path}: {count(file.lines, 'line')} taken out" for file in receipt.files]
    for version, ids in receipt.trained.items():
        lines.append(f"{version} was trained on {len(ids)} of them, and so are the versions that descend from it")
    if receipt.trained:
        lines.append("weights do not forget: train anew from an earlier version, and remove these")
    if receipt.finished_at:
        lines.append(f"the receipt is {receipt.receipt_id}.json in {FOLDER}/")
    return Output(receipt.model_dump(mode="json"), "\n".join(lines))


def _rows(found: DataStats) -> list[tuple[str, ...]]:
    counts = {"branches": {"": found.branches} if found.branches else {}, "recorded": found.labels}
    rows: list[tuple[str, ...]] = [(name, count(n, "episode"), OUTCOMES[name]) for name, n in found.outcomes.items()]
    rows += [(f"{kind} {name}".strip(), str(n)) for kind, by_name in counts.items() for name, n in by_name.items()]
    rows += [("tokens not counted", count(found.uncounted, "call"))] if found.uncounted else []
    rows.append(("groups with variance", f"{found.groups_with_variance} of {found.groups}"))
    if found.attempt_groups:
        rows.append(("of first tries", f"{found.attempt_groups_with_variance} of {found.attempt_groups}"))
    rows += rate_rows(found.pass_rates)
    if found.uneven_retries:
        why = "drawn after others had failed, or of controls"
        rows.append(("retries in no rate", count(found.uneven_retries, "try"), why))
    shares: dict[str, dict[str, Share]] = {"version": found.versions, "split": found.splits, "source": found.sources}
    for by, keyed in shares.items():
        for key, share in keyed.items() if keyed.keys() != {UNKNOWN} else ():
            n = f"{count(share.episodes, 'episode')}, {count(share.tokens_sampled, 'token')}"
            first = f"first try {rate_text(share.first_try)}" if share.first_try else ""
            rows.append((f"{by} not recorded" if key == UNKNOWN else f"{by} {key}", n, first))
    return rows


def _some(lines: list[str]) -> list[str]:
    more = len(lines) - MAX_SHOWN
    return lines[:MAX_SHOWN] + ([f"  and {more} more; --json lists them all"] if more > 0 else [])
