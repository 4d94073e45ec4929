"""Decisions of the gate as the page shows them: conditions, the course of the test, and the sentinel's examples."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from functools import lru_cache
from statistics import fmean
from typing import Any

from r3agent.errors import R3Error
from r3agent.evaluate.sequential import course
from r3agent.store.history import Event, history
from r3agent.store.registry import Registry

SIGNS = {
    "leaks": "Reflections that give the answer away",
    "length": "Reflections that are much longer or shorter",
    "disagreement": "Answers that a second verifier refuses",
}
"""Titles of the signs of reward hacking; another sign is the name of a source whose first tries were lost."""


def decisions(
    compared: Iterable[Mapping[str, Any]], registry: Registry, listed: Container[str], notes: list[str]
) -> list[dict[str, Any]]:
    """List the recorded decisions of the gate, oldest first.

    Args:
        compared: the comparisons, as `comparisons` reads them.
        listed: ids of the trajectories on the page.
    """
    try:
        events = history(registry.policies_dir)
    except R3Error as error:
        notes.append(str(error))
        return []
    by_file = {comparison["file"]: comparison for comparison in compared}
    decided = [event for event in events if event.event in ("passed", "failed")]
    return [_decision(event, by_file.get(event.file, {}), listed) for event in decided]


def _decision(event: Event, comparison: Mapping[str, Any], listed: Container[str]) -> dict[str, Any]:
    draw = comparison.get("draw") or {}
    test: dict[str, Any] | None = None
    if event.alpha is not None and draw.get("gains"):
        test = _course(tuple(draw["gains"]), draw["planned"], event.alpha / 2)
    return {
        "version": event.version,
        "other": event.other,
        "at": event.at,
        "by": event.by,
        "promoted": event.event == "passed",
        "reasons": event.reasons,
        "test": test,
        "signs": [
            {
                "title": SIGNS.get(sign, f"First tries on {sign} that were lost"),
                "blocked": sign in event.blocked_by,
                "examples": [{**example, "listed": example["trajectory_id"] in listed} for example in shown],
            }
            for sign, shown in (comparison.get("examples") or {}).items()
        ],
    }


@lru_cache(maxsize=64)
def _course(gains_N: Sequence[float], planned: int, level: float) -> dict[str, Any]:
    """Return the course of a sequential test: columns with a value for each of some numbers of tasks."""
    found = course(gains_N, planned=planned, level=level)
    return {
        "planned": planned,
        "needed": 1 / level,
        "n_tasks": [evidence.n_tasks for evidence in found],
        "e_value": [evidence.e_value for evidence in found],
        "points": [100 * fmean(gains_N[: evidence.n_tasks]) for evidence in found],
        "low": [evidence.low for evidence in found],
        "high": [evidence.high for evidence in found],
    }
