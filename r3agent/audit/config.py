"""Settings of an audit: the section `[audit]` of `r3.toml`."""

from __future__ import annotations

from pydantic import Field

from r3agent.records.trajectory import Record


class AuditConfig(Record):
    n: int = Field(default=200, ge=1)
    """Tasks that the verifier is tried on. A source that generates tasks is read for as many of each split; those of
    a file or a data set are compared with one another."""
    repeats: int = Field(default=3, ge=1)
    """Number of times each answer is judged, to see verdicts that change."""
    concurrency: int = Field(default=4, ge=1)
    """Processes that judge, each with its own hash seed; one that hangs is ended."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Seconds after which a verdict counts as hanging."""
    slow_s: float = Field(default=5.0, gt=0)
    """Seconds within which 99 % of the verdicts must come."""
    max_gold_failing: float = Field(default=0.0, ge=0, lt=1)
    """Share of gold answers that may fail."""
    max_empty_passing: float = Field(default=0.0, ge=0, lt=1)
    """Share of empty answers that may pass, e.g. where saying nothing is right."""
    max_shuffled_passing: float = Field(default=0.02, ge=0, lt=1)
    """Share of other tasks' gold answers that may pass; only those that differ from the task's own are tried."""
    max_flaky: float = Field(default=0.0, ge=0, lt=1)
    """Share of answers whose repeated verdicts may differ."""
    model_limit: int | None = Field(default=None, ge=1)
    """Tokens that the model takes, prompt and completion together; default: the endpoint's limit, if one is given."""
