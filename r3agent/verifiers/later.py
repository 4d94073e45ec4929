"""Nobody knows yet: the truth comes hours later, with `r3agent label` or `r3agent.label()`."""

from __future__ import annotations

from r3agent.records.trajectory import Task
from r3agent.verifiers import PENDING, Pending


def later(task: Task, answer: str) -> Pending:
    """The episode ends after its first try, without a verdict; it is not trained on before it has one."""
    return PENDING
