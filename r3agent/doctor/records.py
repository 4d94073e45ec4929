"""Records of a diagnosis."""

from __future__ import annotations

from typing import Literal, TypeAlias

from r3agent.records.trajectory import Capability, Record

Status: TypeAlias = Literal["yes", "no", "unknown", "skipped"]
"""Result of a check; `unknown`: the response is inconclusive; `skipped`: a check that it depends on failed."""


class Check(Record):
    """Result of one check of an endpoint."""

    name: str
    status: Status
    detail: str = ""
    """Evidence: numbers, or the message of the server."""
    remedy: str | None = None
    """Change that would make the check pass."""


class Diagnosis(Record):
    """Result of all checks of an endpoint."""

    base_url: str
    """Base URL for `OpenAIPolicy`, without any password."""
    tried: tuple[str, ...]
    """Base URLs that were tried, in order."""
    model: str | None
    """Served name that was probed; `None` if none is known."""
    tier: Capability | None
    """Capability of spans from this endpoint, for a plain request and one with n = 2; `None` if it is unusable."""
    checks: tuple[Check, ...]
    next_steps: tuple[str, ...]
    """Changes that lead to the next tier."""
