"""What an audit finds."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import computed_field

from r3agent.records.trajectory import Record

Status: TypeAlias = Literal["ok", "warning", "failed", "skipped"]
"""`warning`: worth a look, and perhaps meant so. `skipped`: there was nothing to try it on."""

MAX_EXAMPLES = 5


class Check(Record):
    """One question, and its answer in numbers."""

    name: str
    status: Status
    detail: str = ""
    """The answer in words."""
    counts: dict[str, int] = {}
    rate: float | None = None
    """Share of what was tried that is wrong; `None` where nothing was."""
    examples: tuple[str, ...] = ()
    """Some of what is wrong: task ids, and what was seen."""
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
    """How many were looked at, by split."""
    checks: tuple[Check, ...]

    @computed_field
    @property
    def ok(self) -> bool:
        """Nothing failed; there may be warnings."""
        return all(check.ok for check in self.checks)


def some(examples: list[str]) -> tuple[str, ...]:
    """The first few, each short enough to read."""
    return tuple(text if len(text) <= 240 else f"{text[:237]}..." for text in examples[:MAX_EXAMPLES])
