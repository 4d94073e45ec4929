"""What the doctor finds."""

from __future__ import annotations

from typing import Literal, TypeAlias

from r3agent.records.trajectory import Capability, Record

Status: TypeAlias = Literal["yes", "no", "unknown", "skipped"]
"""`unknown`: it was tried, and the answer does not tell. `skipped`: it needs something that failed."""


class Check(Record):
    """One thing an endpoint can do, or not."""

    name: str
    status: Status
    detail: str = ""
    """What was seen: numbers, or the server's own words."""
    remedy: str | None = None
    """What would change it."""


class Diagnosis(Record):
    """What is known of an endpoint after all checks."""

    base_url: str
    """What `OpenAIPolicy` takes, without any password."""
    tried: tuple[str, ...]
    """The addresses that were asked for their models, in order."""
    model: str | None
    """The served name that was asked; `None` when none is known."""
    tier: Capability | None
    """What a span recorded there is good for, from a plain request and from one with n = 2; `None`: no use at all."""
    checks: tuple[Check, ...]
    next_steps: tuple[str, ...]
    """What to change to reach the next tier."""
