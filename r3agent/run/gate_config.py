"""Settings of the gate (section [gate] of `r3.toml`)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from r3agent.records.trajectory import Record
from r3agent.tasks.splits import Split


class GateConfig(Record):
    split: Split = "gate"
    """Split that decides on promotions. `gate` is used neither for training nor for the final evaluation. Use `test`
    only for a single decision whose numbers are reported either way."""
    test: Literal["sequential", "fixed"] = "sequential"
    """Test of the gain: `sequential` looks after every batch of tasks and ends when the evidence is in or out of reach,
    `fixed` compares all tasks at once. On as many tasks, `fixed` finds smaller gains: take it where the split has fewer
    than `gate.n`. Where `gate.split` is `eval.split`, whose numbers are final, the test is `fixed`."""
    n: int | None = Field(default=None, ge=1)
    """Largest number of tasks of a gate, which are fresh ones as long as the source has any; default: `eval.n`, and for
    `sequential` half more, which finds as many gains with fewer tasks on average. A gate that has decided stays."""
    batch: int = Field(default=100, ge=1)
    """Number of tasks that both versions do before each look of the sequential test."""
    min_lift: float = 0.0
    """Minimum gain of success after reflection for a promotion, in percentage points."""
    max_regression: float = Field(default=2.0, ge=0)
    """Maximum loss of first-try success, and maximum increase of errors, in percentage points."""
    max_leaks: float = Field(default=5.0, ge=0, le=100)
    """Maximum rise of the share of reflections that give their task's answer away, in percentage points. This and the
    next limits are those of a sentinel for reward hacking: a change that may be chance does not count."""
    max_length_factor: float = Field(default=3.0, ge=1)
    """Maximum factor by which reflections may become longer or shorter."""
    verifier: str = ""
    """Second verifier, such as `exact` beside a judge, that judges the answers of gates and evaluations too."""
    verifier_params: dict[str, Any] = {}
    """Settings of the second verifier."""
    max_disagreement: float = Field(default=5.0, ge=0, le=100)
    """Maximum rise of the share of answers that the task's verifier passes and the second one refuses, in percentage
    points."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Largest probability that a loop, however long, promotes a version that is no better, under one set of sampling,
    prompts and tasks. The first comparison is a two-sided test at this level; later ones get a third, a sixth, a tenth
    of it, and so on, and one that promotes hands its level on to the next."""
