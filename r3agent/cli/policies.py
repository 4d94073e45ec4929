"""`r3agent policies list`, `show` and `diff`: what is recorded of the versions of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any, get_args

from cyclopts import Parameter

from r3agent._util.console import columns
from r3agent._util.messages import count
from r3agent.cards import VersionReport, check_version, describe, diff_versions, list_versions
from r3agent.cards.readme import change_text, compared, numbers
from r3agent.cards.reports import VersionEvaluation
from r3agent.cli.command import DEFAULT_RUN, Output, RunFlag, switch, verb
from r3agent.records.branching import Control

MAX_SHOWN = 12
"""Number of changed values that the text lists without --all."""

GROUPS = ("fact", "rate", "setting", "hash", "package", "metric")
"""Kinds of values, those that say most first."""


@verb()
def list_(*, run: RunFlag = DEFAULT_RUN) -> Output:
    found = list_versions(run)
    lines = columns([_row(report) for report in found], gap=3) or [f"{run} has no versions yet"]
    return Output({"versions": [report.model_dump(mode="json") for report in found]}, "\n".join(lines))


@verb()
def show(
    version: Annotated[str, Parameter(help="Version, such as v0007.")],
    /,
    *,
    run: RunFlag = DEFAULT_RUN,
    check: Annotated[
        bool, switch("Compare the hashes of its weights and episodes with the files; exit 1 if one differs.")
    ] = False,
) -> Output:
    report = describe(run, version)
    data, lines, ok = report.model_dump(mode="json"), [*_text(report)], True
    if check:
        found = check_version(run, version)
        ok, data = found.ok, {**data, "check": found.model_dump()}
        lines += [f"changed: {name}" for name in found.weights_changed]
        for state, ids in {"changed": found.episodes_changed, "missing": found.episodes_missing}.items():
            lines += [f"{count(len(ids), 'episode')} {state}: {', '.join(ids[:3])}"] if ids else []
        forgotten = sum(episode.forgotten for episode in report.episodes or ())
        rest = f"; {count(forgotten, 'episode')} {'was' if forgotten == 1 else 'were'} forgotten since"
        lines += [f"weights and episodes are as they were trained{rest if forgotten else ''}"] if ok else []
    return Output(data, "\n".join(lines), ok=ok)


@verb()
def diff(
    version: Annotated[str, Parameter(help="Version, such as v0003.")],
    other: Annotated[str, Parameter(help="Version to compare it with.")],
    /,
    *,
    run: RunFlag = DEFAULT_RUN,
    all_: Annotated[bool, Parameter(name="--all", help="List every value that differs.", show_default=False)] = False,
) -> Output:
    found = diff_versions(run, version, other)
    kinds = Counter(map(_kind, found.changed))
    keys = sorted(found.changed, key=lambda key: GROUPS.index(_kind(key)))
    shown = keys if all_ else keys[:MAX_SHOWN]
    only_one, only_two = found.episodes_only
    lines = [
        f"{version} and {other} differ in {', '.join(count(kinds[kind], kind) for kind in GROUPS if kinds[kind])}"
        if keys
        else f"{version} and {other} are made alike",
        *columns([("", version, other), *((key, *map(_short, found.changed[key])) for key in shown)], gap=3, indent=2),
        *([f"  and {len(keys) - len(shown)} more, which --all lists"] if len(keys) > len(shown) else []),
        f"trained on {count(found.episodes_of_both, 'episode')} of both, {only_one} only of {version}, "
        f"{only_two} only of {other}",
    ]
    for comparison in found.comparisons:
        lines += _comparison(comparison)
    return Output(found.model_dump(mode="json"), "\n".join(lines))


def _kind(key: str) -> str:
    kinds = {"settings": "setting", "made_with": "hash", "packages": "package", "metrics": "metric"}
    return kinds.get(key.partition(".")[0], "rate") if "." in key else "fact"


def _row(report: VersionReport) -> tuple[str, ...]:
    state = "live" if report.live else "passed the gate" if report.passed else ""
    newest = report.evaluations[-1] if report.evaluations else None
    gain = newest.differences.get("after_reflection") if newest else None
    return (
        report.version,
        f"from {report.parent}" if report.parent else report.kind,
        report.created_at,
        f"after reflection {change_text(gain)} to {newest.baseline}, {newest.split}" if newest and gain else "",
        state,
    )


def _text(report: VersionReport) -> Iterator[str]:
    state = [*(["live"] if report.live else []), *(["passed the gate"] if report.passed else [])]
    origin = f" from {report.parent}" if report.parent else ""
    yield f"{report.version}: {report.kind}{origin}{', '.join(['', *state])}"
    facts = {"made": report.created_at, "base model": report.base_model, "served as": report.served_name}
    if report.fingerprint_tokens:
        facts["fingerprint"] = count(report.fingerprint_tokens, "token")
    if report.episodes is not None:
        forgotten = sum(episode.forgotten for episode in report.episodes)
        facts["trained on"] = count(len(report.episodes), "episode") + (f", {forgotten} forgotten" if forgotten else "")
    if report.provenance is not None:
        facts |= {
            "packages": ", ".join(f"{name} {version}" for name, version in report.provenance.packages.items()),
            **report.provenance.made_with,
            **{name: sha[:16] for name, sha in report.provenance.weights.items() if name.endswith(".safetensors")},
        }
    facts |= {key: f"{value:.4g}" for key, value in numbers(report.metrics.get("train"))}
    yield from columns(facts.items(), gap=3, indent=2)
    for evaluation in report.evaluations:
        yield from _comparison(evaluation)
    for event in report.history:
        other = f" (before: {event.other})" if event.event in ("deployed", "rolled_back") else f" against {event.other}"
        yield f"  {event.at}   {event.event.replace('_', ' ')}{other if event.other else ''} by {event.by}"
        yield from (f"    {reason}" for reason in event.reasons)


def _comparison(found: VersionEvaluation) -> Iterator[str]:
    controls = ", ".join(name for name in get_args(Control) if f"{name}_reflection" in found.rates)
    beside = f" with controls {controls}" if controls else ""
    yield (
        f"{found.candidate} against {found.baseline} on {count(found.n_tasks, 'task')} of the {found.split} split"
        f"{beside} ({found.at or 'time unknown'}, {found.file}):"
    )
    yield from columns(compared(found), gap=3, indent=2)


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
