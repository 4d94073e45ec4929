"""Views of a run."""

from __future__ import annotations

from pathlib import Path

from r3agent.cli.inspect_view import render, summary_lines
from r3agent.cli.limits_view import limit_lines
from r3agent.episodes.quota import CollectLimits
from r3agent.records.cost import Prices
from r3agent.records.summary import summarise
from r3agent.run.inspect import inspect_trajectory
from r3agent.store.labels import SpanLabel
from r3agent.train import TrainConfig
from tests.support.trees import span, tree


def test_summary_has_notes_between_capabilities_and_errors() -> None:
    counts = {
        "tries": 3,
        "tries_of_policy": 1,
        "capabilities": {"eval-only": 7},
        "notes": {"no token ids": 7},
        "errors": {"RequestError": 2},
    }
    assert summary_lines(summarise([]).model_copy(update=counts)) == [
        "  asked the policy         1 of 3 tries",
        "  groups with variance     0 of 0",
        "  eval-only                7 spans",
        "    7 x no token ids",
        "  error RequestError       2 episodes",
    ]


def test_cost_and_budgets_have_a_currency_and_a_total() -> None:
    limits = CollectLimits(max_cost=1, max_tokens=1000)
    counts = {"cost": 1.2408, "exceeded": {"max_tokens": 96.0, "max_cost": 0.2408}}
    lines = limit_lines(summarise([]).model_copy(update=counts), limits, Prices(prompt=1, sampled=1, currency="EUR"))
    assert lines == [
        "cost of this call: 1.241 EUR",
        "exceeded by episodes that had begun: max_tokens = 1,000 by 96 to 1,096, "
        "max_cost = 1 EUR by 0.2408 EUR to 1.241 EUR",
    ]


def test_trajectory_names_what_it_left_and_who_overruled() -> None:
    label = SpanLabel(trajectory_id="b", span_id="a", passed=False, by="ada")
    attempt = label.over(span("attempt", passed=True, policy_version="v0000"))
    branch = tree(attempt).changed(trajectory_id="b", parent_id="left")
    shown = render(
        inspect_trajectory(branch, [branch], config=TrainConfig(recipe="paper"), model="bundled", policies_dir=Path())
    )
    assert "trajectory b, a branch of left, credit as trained from v0000" in shown
    assert "attempt ✗ by ada, overruling the verifier, no credit" in shown
