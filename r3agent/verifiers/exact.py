"""Exact match: the answer, stripped, is the expected text."""

from __future__ import annotations

from r3agent.records.trajectory import Task


def exact(task: Task, answer: str) -> bool:
    """Compare with `task.info["answer"]`; a missing expectation is a `KeyError`, hence a verifier error."""
    return answer.strip() == str(task.info["answer"]).strip()
