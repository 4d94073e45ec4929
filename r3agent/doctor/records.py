"""Records of a diagnosis."""

from __future__ import annotations

from typing import Literal, TypeAlias

from r3agent.records.trajectory import Capability, Record

Status: TypeAlias = Literal["yes", "no", "unknown", "skipped"]
"""Result of a check; `unknown`: the answer does not tell; `skipped`: it needs something that failed."""


class Check(Record):
    """Result of one check of an endpoint."""

    name: str
    status: Status
    detail: str = ""
    """Evidence: numbers, or the message of the server."""
    remedy: str | None = None
    """Change that would turn the check into a yes."""


class Diagnosis(Record):
    """Result of all checks of an endpoint."""

    base_url: str
    """Base URL for `OpenAIPolicy`, without any password."""
    tried: tuple[str, ...]
    """Addresses that were asked for their models, in order."""
    model: str | None
    """Served name that was probed; `None` when none is known."""
    tier: Capability | None
    """Capability of spans recorded there, by a plain request and one with n = 2; `None`: no use at all."""
    checks: tuple[Check, ...]
    next_steps: tuple[str, ...]
    """Changes that lead to the next tier."""
