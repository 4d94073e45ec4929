"""Console view of the limits of a collection."""

from __future__ import annotations

from r3agent._util.messages import count
from r3agent.records.summary import CollectSummary


def limit_lines(summary: CollectSummary) -> list[str]:
    """Say which limit ended a collection, by how much budgets were exceeded, and which target was not reached."""
    lines = list[str]()
    if summary.ended_by:
        again = "a higher target" if summary.ended_by.startswith("target_groups") else "the same command"
        left = count(summary.left, "episode")
        lines.append(f"ended by {summary.ended_by}: {left} not run; {again} goes on with them")
    if summary.exceeded:
        amounts = ", ".join(f"{name} by {_amount(by)}" for name, by in summary.exceeded.items())
        limited = "; collect.episode_timeout_s limits their time" if "max_seconds" in summary.exceeded else ""
        lines.append(f"exceeded by episodes that had begun: {amounts}{limited}")
    if summary.unreached:
        remedy = "collect more tasks with --n, or more --samples or --reflections of each"
        lines.append(f"{summary.unreached}, and every episode was run: {remedy}")
    return lines


def _amount(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 1000 else f"{amount:.4g}"
