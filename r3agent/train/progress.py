"""What a person is told of a training: its rows before the first step, and a line for each step."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

STEP = {
    "loss": "loss",
    "reward": "reward",
    "ratio": "ratio",
    "kl": "KL",
    "entropy": "entropy",
    "clip_ratio/region_mean": "clipped",
}
"""What is shown of TRL's log, and as what."""


def told(stage: str, values: Mapping[str, Any]) -> str:
    """One line for a stage that `train` tells of."""
    return {"rows": rows_line, "mismatch": mismatch_line, "step": step_line}.get(stage, _other)(values)


def rows_line(report: Mapping[str, Any]) -> str:
    """From a `RowReport`."""
    dropped: Mapping[str, int] = report["dropped"]
    alike = report["zero_variance_groups"]
    parts = [
        f"{report['rows']} rows in {report['groups']} groups",
        f"in {alike / max(1, alike + report['groups']):.0%} of all groups the siblings earned the same",
        "dropped: " + (", ".join(f"{reason} {n}" for reason, n in dropped.items()) or "none"),
        "age in versions: " + ", ".join(f"{n} rows {age}" for age, n in report["ages"].items()),
    ]
    return "; ".join(parts)


def mismatch_line(mismatch: Mapping[str, Any]) -> str:
    """From a `Mismatch`."""
    if mismatch["gap"] is None:
        return "no row has recorded logprobs: the starting weights' own stand in for them"
    labels = {"all rows": mismatch["gap"], **(mismatch["labels"] if len(mismatch["labels"]) > 1 else {})}
    gaps = (f"{label} mean {gap['mean']:.2g}, p99 {gap['p99']:.2g}" for label, gap in labels.items())
    return (
        f"|recorded - recomputed| logprob: {'; '.join(gaps)}; effective sample size {mismatch['ess']:.0%} of the rows"
    )


def step_line(step: Mapping[str, Any]) -> str:
    """From what `train` tells of a step."""
    shown = (f"{name} {step[key]:.3g}" for key, name in STEP.items() if step.get(key) is not None)
    left = timedelta(seconds=round(step["seconds_left"]))
    return f"step {step['step']}/{step['steps']}, {left} left: {', '.join(shown)}, {step['tokens_per_s']:.0f} tokens/s"


def _other(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())
