"""Plain-text report of an audit."""

from __future__ import annotations

from collections.abc import Iterator

from r3agent._util.console import columns
from r3agent.audit.records import Audit, Check


def report(audit: Audit) -> str:
    """Render the verdict and one line per check, followed by examples and a remedy if it found something."""
    return "\n".join(_lines(audit))


def _lines(audit: Audit) -> Iterator[str]:
    sizes = ", ".join(f"{split} {n}" for split, n in audit.tasks.items())
    yield f"{audit.source}, verifier {audit.verifier}: {sizes} tasks"
    failed = [check.name for check in audit.checks if not check.ok]
    yield f"not fit to train on: {', '.join(failed)}" if failed else "fit to train on, as far as this can tell"
    yield ""
    yield from columns(row for check in audit.checks for row in _rows(check))


def _rows(check: Check) -> Iterator[tuple[str, str, str]]:
    yield check.name, check.status, check.detail
    yield from (("", "", " ".join(example.split())) for example in check.examples)
    if check.remedy:
        yield "", "", f"-> {check.remedy}"
