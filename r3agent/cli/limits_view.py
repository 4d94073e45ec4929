"""Console view of the limits of a collection."""

from __future__ import annotations

from r3agent._util.messages import count
from r3agent.episodes.quota import CollectLimits
from r3agent.records.cost import Prices
from r3agent.records.summary import CollectSummary


def limit_lines(summary: CollectSummary, limits: CollectLimits, prices: Prices | None = None) -> list[str]:
    """Say what a collection cost, which limit ended it, and which budgets and targets were exceeded or missed."""
    lines = list[str]()
    if prices and summary.cost is not None:
        lines.append(f"cost of this call: {prices.text(summary.cost)}")
    if summary.ended_by:
        again = "a higher target" if summary.ended_by.startswith("target_groups") else "the same command"
        left = count(summary.left, "episode")
        lines.append(f"ended by {summary.ended_by}: {left} not run; {again} goes on with them")
    if summary.exceeded:
        amounts = ", ".join(_excess(name, by, limits, prices) for name, by in summary.exceeded.items())
        limited = "; collect.episode_timeout_s limits their time" if "max_seconds" in summary.exceeded else ""
        lines.append(f"exceeded by episodes that had begun: {amounts}{limited}")
    if summary.unreached:
        remedy = "collect more tasks with --n, or more --samples or --reflections of each"
        lines.append(f"{summary.unreached}, and every episode was run: {remedy}")
    return lines


def _excess(name: str, by: float, limits: CollectLimits, prices: Prices | None) -> str:
    limit = getattr(limits, name)
    render = prices.text if prices and name == "max_cost" else _amount
    return f"{name} = {render(limit)} by {render(by)} to {render(limit + by)}"


def _amount(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 1000 else f"{amount:.4g}"
