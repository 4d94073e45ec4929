"""Why a vLLM server ended, read from its log."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """What a line of the log means, and what helps."""

    pattern: str
    """A regular expression, searched in the whole log; its first group, if there is one, completes the cause."""
    cause: str
    remedy: str


CAUSES: tuple[Cause, ...] = ()


def likely_cause(log: str) -> str:
    """The first of `CAUSES` that the log shows, as `cause; remedy`; empty if it shows none."""
    for known in CAUSES:
        if found := re.search(known.pattern, log, re.MULTILINE):
            return f"{known.cause.format(*found.groups())}; {known.remedy}"
    return ""
