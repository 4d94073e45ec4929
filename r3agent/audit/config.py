"""Audit settings: the `[audit]` section of r3.toml."""

from __future__ import annotations

from pydantic import Field

from r3agent.records.trajectory import Record


class AuditConfig(Record):
    n: int = Field(default=200, ge=1)
    """Number of tasks to test the verifier on. From a source that generates tasks, this many of each split are compared
    with one another; of a file or a data set, all tasks are."""
    repeats: int = Field(default=3, ge=1)
    """Number of times to judge each answer, to detect verdicts that change."""
    concurrency: int = Field(default=4, ge=1)
    """Number of judging processes, each with its own hash seed; one that hangs is killed."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Seconds after which the verifier counts as hanging on an answer."""
    slow_s: float = Field(default=5.0, gt=0)
    """Seconds within which 99 % of the verdicts must arrive."""
    max_gold_failing: float = Field(default=0.0, ge=0, lt=1)
    """Largest share of gold answers that may fail."""
    max_empty_passing: float = Field(default=0.0, ge=0, lt=1)
    """Largest share of empty answers that may pass, e.g. if no answer can be right."""
    max_shuffled_passing: float = Field(default=0.02, ge=0, lt=1)
    """Largest share of other tasks' gold answers that may pass; only those that differ from the task's own are
    tested."""
    max_flaky: float = Field(default=0.0, ge=0, lt=1)
    """Largest share of answers whose repeated verdicts may differ."""
    max_same_gold: float = Field(default=0.9, gt=0, le=1)
    """Largest share of tasks that may have one and the same gold answer, among those that expect one."""
    probe_n: int = Field(default=20, ge=1)
    """Number of tasks that `--probe` tries on the served model."""
    probe_samples: int = Field(default=4, ge=2)
    """G: first tries of each of these tasks, a group."""
    max_unreadable: float = Field(default=0.5, ge=0, le=1)
    """Largest share of first tries that may have no answer in a form that the verifier reads."""
    min_varied: float = Field(default=0.1, ge=0, le=1)
    """Smallest share of groups whose first tries must not all pass or all fail: only they teach anything."""
    model_limit: int | None = Field(default=None, ge=1)
    """Maximum tokens of prompt and completion together; default the endpoint's limit, if it is known."""
