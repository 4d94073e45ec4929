from __future__ import annotations

import pytest

from r3agent.errors import ArgumentError
from r3agent.evaluate import compare, forgetting, gate, table
from tests.evaluate.episodes import episode


def tried(version: str, passed: int, n: int = 20) -> list:
    return [episode(f"t{i:02}", i < passed, version=version) for i in range(n)]


def test_forgetting_is_within_its_budget_or_not():
    found = forgetting("gsm8k", tried("v0000", 15), tried("v0001", 14), budget=5)
    assert found.change is not None
    assert (found.change.points, found.within) == (-5, True)
    assert found.condition == "first try on gsm8k -5.0 points, at least -5"
    assert not forgetting("gsm8k", tried("v0000", 15), tried("v0001", 13), budget=5).within


def test_forgetting_that_is_not_known_is_not_within():
    errors = [episode(t.task.id, True, version="v0001", error="PolicyError") for t in tried("v0001", 2, n=2)]
    found = forgetting("gsm8k", tried("v0000", 1, n=2), errors, budget=5)
    assert (found.within, found.before is not None, found.after) == (False, True, None)
    assert found.condition == "first try on gsm8k not known, at least -5"
    with pytest.raises(ArgumentError, match="budget = -1"):
        forgetting("gsm8k", tried("v0000", 1), tried("v0001", 1), budget=-1)


def test_gate_refuses_a_version_that_forgot():
    comparison = compare(
        [episode(f"{i}", False) for i in range(20)], [episode(f"{i}", False, True, version="v0001") for i in range(20)]
    )
    limits = {"min_lift": 0, "max_regression": 2, "alpha": 0.05}
    assert gate(comparison, **limits).promote
    lost = forgetting("gsm8k", tried("v0000", 15), tried("v0001", 5), budget=5)
    forgot = comparison.model_copy(update={"forgetting": (lost,)})
    decision = gate(forgot, **limits)
    assert (decision.promote, decision.reasons[-1]) == (False, f"NOT met: {lost.condition}")
    assert f"NOT within its budget: {lost.condition}" in table(forgot)
    assert "first try, gsm8k" in table(forgot)
