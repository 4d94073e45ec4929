"""Policy versions of a run, their training steps, and the timeline of promotions and rollbacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import orjson

from r3agent._util.messages import count
from r3agent.errors import R3Error
from r3agent.records.versions import BASE, is_version, version_number
from r3agent.store.history import history
from r3agent.store.registry import Registry
from r3agent.train.lineage import ROWS_FILE, STEPS_FILE

Stamp: TypeAlias = tuple[int, int, int]

MAX_STEPS = 2_000
"""Steps of a version on the page; of more, an even sample."""

EVENTS = {
    "passed": ("promoted", "passed the gate against {other}"),
    "failed": ("refused", "did not pass the gate against {other}"),
    "deployed": ("deployed", "made live in place of {other}"),
    "rolled_back": ("rollback", "made live again, rolled back from {other}"),
}
"""Events of a run's history that the page shows, with their kind and text there."""


def version_list(registry: Registry, notes: list[str]) -> list[dict[str, Any]]:
    """Describe each version by its card."""
    found: list[dict[str, Any]] = []
    live, passed = _pointer(registry, notes)
    for version in registry.versions():
        try:
            card = registry.card(version)
        except R3Error as error:
            notes.append(str(error))
            continue
        rows = card.metrics.get("rows")
        found.append(
            {
                "version": version,
                "parent": card.parent,
                "kind": card.kind,
                "created_at": card.created_at,
                "live": version == live,
                "passed": version in passed,
                "rows": rows.get("rows") if isinstance(rows, Mapping) else None,
                "steps": card.metrics.get("steps"),
                "seconds": card.metrics.get("seconds"),
            }
        )
    return found


def steps(registry: Registry) -> dict[str, dict[str, list[float | None]]]:
    """Return the logged metrics of each version's training, a list for each, by version."""
    paths = sorted(registry.policies_dir.glob(f"v*/{STEPS_FILE}"))
    return {path.parent.name: _steps_in(path, stamp_of(path)) for path in paths}


@lru_cache(maxsize=256)
def _steps_in(path: Path, _: Stamp) -> dict[str, list[float | None]]:
    lines = [values for values in _json_lines(path) if isinstance(values, dict)]
    lines = lines[:: -(-len(lines) // MAX_STEPS) or 1]
    names = dict.fromkeys(name for values in lines for name in values)
    return {name: [_number(values.get(name)) for values in lines] for name in names}


def rows_files(registry: Registry) -> dict[Path, Stamp]:
    """Return the files with what each version was trained on."""
    return {path: stamp_of(path) for path in sorted(registry.policies_dir.glob(f"v*/{ROWS_FILE}"))}


def trained_rows(path: Path) -> list[tuple[str, str]]:
    """Return the trajectory and the span of each row that a version was trained on, once each."""
    rows = (row for row in _json_lines(path) if isinstance(row, list) and len(row) > 1)
    return list(dict.fromkeys((str(row[0]), str(row[1])) for row in rows))


def stamp_of(path: Path) -> Stamp:
    """Return what changes with a file."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def timeline(
    cards: list[dict[str, Any]],
    compared: list[dict[str, Any]],
    registry: Registry,
    last_at: Mapping[tuple[str, str], str],
) -> list[dict[str, Any]]:
    """List what happened to the versions, oldest first."""
    recorded = _recorded(registry)
    decided = {event["version"] for event in recorded if event["kind"] in ("promoted", "refused")}
    events = [_made(card) for card in cards] + recorded
    passed = {card["version"] for card in cards if card["passed"]}
    for comparison in compared:
        old, new = comparison["baseline"]["policy"], comparison["candidate"]["policy"]
        is_gate = comparison["kind"] == "gate"
        if is_gate and new in decided:
            continue
        folder = comparison["file"].rpartition("/")[0]
        times = [at for version in (old, new) if (at := last_at.get((f"{folder}/{version}", version)))]
        change = comparison["changes"].get("after_reflection")
        by = f"{change['points']:+.1f} points, p = {change['p_value']:.2g}" if change else "no common cell"
        kind = "compared" if not is_gate else "promoted" if new in passed else "refused"
        text = {
            "compared": f"{new} compared with {old}: {by}",
            "promoted": f"{new} passed the gate against {old}: {by}",
            "refused": f"{new} did not pass the gate against {old}: {by}",
        }[kind]
        events.append({"at": max(times) if times else _time(comparison["written_at"]), "kind": kind, "text": text})
    moved = any(event["kind"] in ("deployed", "rollback") for event in recorded)
    return sorted([*events, *([] if moved else _moved(registry, passed))], key=lambda event: event["at"])


def _recorded(registry: Registry) -> list[dict[str, Any]]:
    """Return the decisions and moves that the run has recorded."""
    try:
        events = history(registry.policies_dir)
    except R3Error:  # a newer release wrote it: what else is known remains
        return []
    found: list[dict[str, Any]] = []
    for event in events:
        if event.event in EVENTS:
            kind, text = EVENTS[event.event]
            about = "".join([": ", "; ".join(event.reasons)]) if event.reasons else ""
            text = f"{event.version} {text.format(other=event.other)}, by {event.by}{about}"
            found.append({"at": event.at, "kind": kind, "version": event.version, "text": text})
    return found


def _made(card: dict[str, Any]) -> dict[str, Any]:
    if card["version"] == BASE:
        return {"at": card["created_at"], "kind": "trained", "text": f"{BASE} is the base model"}
    how = f" on {card['rows']:,} rows in {count(card['steps'], 'step')}" if card["rows"] and card["steps"] else ""
    text = f"{card['version']} trained from {card['parent']}{how}"
    return {"at": card["created_at"], "kind": "trained", "text": text}


def _moved(registry: Registry, passed: set[str]) -> list[dict[str, Any]]:
    """Describe the last move of the live pointer, if no gate made it."""
    live, _ = _pointer(registry, [])
    if live is None:
        return []
    at, before = _time(registry.live_path.stat().st_mtime), registry.previous
    if before and is_version(before) and version_number(before) > version_number(live):
        return [{"at": at, "kind": "rollback", "text": f"rolled back from {before} to {live}, which is live"}]
    if live != BASE and live not in passed:
        return [{"at": at, "kind": "deployed", "text": f"{live} made live by hand, without a gate"}]
    return []


def _json_lines(path: Path) -> Iterator[Any]:
    """Read the lines of a log that are whole."""
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        with suppress(ValueError):
            yield orjson.loads(line)


def _pointer(registry: Registry, notes: list[str]) -> tuple[str | None, tuple[str, ...]]:
    try:
        return registry.live, registry.passed
    except R3Error as error:
        notes.append(str(error))
        return None, ()


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _number(value: Any) -> float | None:
    return float(f"{value:.5g}") if isinstance(value, int | float) else None
