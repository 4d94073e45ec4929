"""Records of an audit: its checks, and the whole."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import computed_field

from r3agent.records.trajectory import Record

Status: TypeAlias = Literal["ok", "warning", "failed", "skipped"]
"""Result of a check. `warning`: worth a look, and perhaps meant so. `skipped`: there was nothing to try it on."""

MAX_EXAMPLES = 5


class Check(Record):
    """One check of the tasks or the verifier, with its result in numbers."""

    name: str
    status: Status
    detail: str = ""
    """Result in words."""
    counts: dict[str, int] = {}
    rate: float | None = None
    """Share of what was tried that is wrong; `None` where nothing was."""
    examples: tuple[str, ...] = ()
    """Examples of what is wrong: task ids, and what was seen."""
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
    """Number of tasks looked at, by split."""
    checks: tuple[Check, ...]

    @computed_field
    @property
    def ok(self) -> bool:
        """True if nothing failed; there may be warnings."""
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
    """Return the check of `n` things of which those described in `wrong` are wrong."""
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
    """Return the first few, each short enough to read."""
    return tuple(text if len(text) <= 240 else f"{text[:237]}..." for text in examples[:MAX_EXAMPLES])
