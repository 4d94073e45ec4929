"""Comparisons and evaluations of a run as the page shows them, and its headline.

Files of other releases have other cells: every field that has the form of a rate or of a difference is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from r3agent.evaluate.comparison import whole_file
from r3agent.records.versions import BASE
from r3agent.store.registry import Registry

RATE, DIFFERENCE = {"rate", "low", "high"}, {"points", "low", "high", "p_value"}
"""Fields by which a rate and a difference are known."""

MAIN = "after_reflection"
ALPHA = 0.05
"""P-value above which a change is called unclear."""


def comparisons(run: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Read the comparisons in `gate/` and `eval/`, the final ones last."""
    found: list[dict[str, Any]] = []
    for path in [*sorted(run.glob("gate/v*/v*-v*.json")), *sorted(run.glob("eval/v*-v*.json"))]:
        try:
            stored = orjson.loads(path.read_bytes())
            whole = orjson.loads(beside.read_bytes()) if (beside := whole_file(path)).exists() else stored
            compared = (whole if whole["settings"] == stored["settings"] else stored)["comparison"]
            others = {f"first try on {other['source']}": other["change"] for other in compared.get("forgetting") or ()}
            found.append(
                {
                    "file": path.relative_to(run).as_posix(),
                    "kind": path.relative_to(run).parts[0],
                    "split": path.name.split(".")[1],
                    "written_at": path.stat().st_mtime,
                    "baseline": _evaluation(compared["baseline"]),
                    "candidate": _evaluation(compared["candidate"]),
                    "changes": _with_fields({**compared, **others}, DIFFERENCE),
                    "draw": compared.get("draw"),
                    "examples": compared.get("examples"),
                }
            )
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            notes.append(f"{path.relative_to(run)} is not a comparison: {type(error).__name__}: {error}")
    return found


def evaluations(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """List each evaluated version once for each split and folder."""
    by_place: dict[tuple[str, ...], dict[str, Any]] = {}
    for comparison in found:
        for side in ("baseline", "candidate"):
            evaluation = comparison[side]
            place = comparison["kind"], comparison["split"], evaluation["policy"]
            if comparison["kind"] == "gate":  # each gate draws its own tasks
                place = (*place, comparison["file"])
            by_place[place] = {**evaluation, "kind": comparison["kind"], "split": comparison["split"]}
    return list(by_place.values())


def headline(found: list[dict[str, Any]], registry: Registry, episodes: int) -> dict[str, Any]:
    """Say if the run made its policy better, by how much, and how sure that is."""
    decisive = _decisive(found, registry)
    if decisive is None:
        if not episodes:
            text, detail = "Nothing is stored yet.", "r3agent collect stores episodes; then make the report again."
        else:
            text = f"{episodes:,} episodes are stored, and no two versions are compared yet."
            detail = "r3agent eval compares two versions on tasks that training never saw."
        return {"kind": "none", "text": text, "detail": detail}
    change, old, new = decisive["changes"][MAIN], decisive["baseline"], decisive["candidate"]
    points, p_value = change["points"], change["p_value"]
    kind = "unclear" if p_value >= ALPHA or not points else "better" if points > 0 else "worse"
    cells = [side["cells"].get(MAIN, {}).get("rate") for side in (old, new)]
    rates = "" if None in cells else " ({:.1%} → {:.1%})".format(*cells).replace("%", " %")
    begin = {
        "better": f"Better: {new['policy']} solves {points:.1f} points more than {old['policy']}",
        "worse": f"Worse: {new['policy']} solves {-points:.1f} points less than {old['policy']}",
        "unclear": f"No clear difference between {new['policy']} and {old['policy']}: {points:+.1f} points",
    }[kind]
    where = f"on {change.get('n_tasks', '?')} tasks of the {decisive['split']} split that training never saw"
    often = "easily" if kind == "unclear" else "rarely"
    selected = decisive["kind"] == "gate" and decisive["split"] != "test"
    caveat = " These tasks decided on the promotion too; r3agent eval measures without that." if selected else ""
    return {
        "kind": kind,
        "text": f"{begin} after one reflection{rates}.",
        "detail": f"{where[0].upper()}{where[1:]}. 95 % interval {change['low']:+.1f} to {change['high']:+.1f} points; "
        f"chance alone would {often} give a change of this size (p = {p_value:.2g}).{caveat}",
        "file": decisive["file"],
    }


def _decisive(found: list[dict[str, Any]], registry: Registry) -> dict[str, Any] | None:
    """Return the comparison that says most: final before gate, of the live version before others, with the base."""

    def weight(comparison: dict[str, Any]) -> tuple[bool, bool, bool, str]:
        old, new = (comparison[side]["policy"] for side in ("baseline", "candidate"))
        return new == live, comparison["kind"] == "eval", old == BASE, new

    try:
        live = registry.live
    except Exception:  # `timeline` tells of a pointer that cannot be read
        live = None
    return max((c for c in found if MAIN in c["changes"]), key=weight, default=None)


def _evaluation(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    behaviour = evaluation.get("behaviour") or {}
    paid = (behaviour.get("per_success") or {}).get(MAIN) or {}
    return {
        "policy": str(evaluation["policy"]),
        "cells": _with_fields(evaluation, RATE),
        "behaviour": _with_fields(behaviour, RATE),
        "tokens_per_success": paid.get("tokens"),
        "n_tasks": evaluation.get("n_tasks"),
    }


def _with_fields(values: Mapping[str, Any], fields: set[str]) -> dict[str, Any]:
    """Return the values that have these fields, each a number."""
    found = {name: v for name, v in values.items() if isinstance(v, Mapping) and fields <= v.keys()}
    return {name: v for name, v in found.items() if all(isinstance(v[field], int | float) for field in fields)}
