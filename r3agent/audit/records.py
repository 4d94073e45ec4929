"""Records of an audit and its checks."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import computed_field

from r3agent.records.trajectory import Record

Status: TypeAlias = Literal["ok", "warning", "failed", "skipped"]
"""Result of a check. `warning`: worth a look, but may be intended. `skipped`: there was nothing to check."""

MAX_EXAMPLES = 5
MAX_EXAMPLE_CHARS = 1000
"""Maximum length of an example; an error message ends with its remedy, so it is kept whole."""


class Check(Record):
    """Check of the tasks or the verifier, with its result."""

    name: str
    status: Status
    detail: str = ""
    """Result in words."""
    counts: dict[str, int] = {}
    rate: float | None = None
    """Share of wrong cases; `None` if none were tested."""
    examples: tuple[str, ...] = ()
    """Examples of wrong cases: task ids with details."""
    remedy: str = ""

    @computed_field
    @property
    def ok(self) -> bool:
        return self.status != "failed"


class Audit(Record):
    """All checks of a source and its verifier."""

    source: str
    verifier: str
    tasks: dict[str, int]
    """Number of audited tasks, by split."""
    checks: tuple[Check, ...]

    @computed_field
    @property
    def ok(self) -> bool:
        """Return True if no check failed; there may be warnings."""
        return all(check.ok for check in self.checks)


def check_of(
    name: str,
    status: Status,
    detail: str,
    *,
    wrong: list[str],
    n: int,
    remedy: str = "",
    counts: dict[str, int] | None = None,
) -> Check:
    """Make the check of `n` cases, of which `wrong` describes the wrong ones."""
    return Check(
        name=name,
        status=status,
        detail=detail,
        counts={"tried": n, "wrong": len(wrong), **(counts or {})},
        rate=len(wrong) / n if n else None,
        examples=some(wrong),
        remedy=remedy,
    )


def some(examples: list[str]) -> tuple[str, ...]:
    """Return the first few examples, each shortened."""
    return tuple(
        text if len(text) <= MAX_EXAMPLE_CHARS else f"{text[: MAX_EXAMPLE_CHARS - 3]}..."
        for text in examples[:MAX_EXAMPLES]
    )
