from __future__ import annotations

from r3agent.evaluate import compare, evaluate, table
from tests.evaluate.episodes import episode

OLD = [episode("a", True), episode("b", False, reflected=False), episode("c", False), episode("d", True)]
NEW = [episode("a", True, version="v0001"), episode("b", False, reflected=True, version="v0001")]


def test_table_of_one_version():
    assert table(evaluate(OLD)) == (
        "                  v0000\n"
        "first try         50.0 % [15.0, 85.0]\n"
        "after reflection  50.0 % [15.0, 85.0]\n"
        "blind retry       50.0 % [15.0, 85.0]\n"
        "lift over blind   +0.0 [-46.2, +46.2]\n"
        "errors            0.0 % [0.0, 49.0]\n"
        "wrong to right    0.0 % [0.0, 65.8]\n"
        "leaks             0.0 % [0.0, 65.8]\n"
        "4 episodes of 4 tasks"
    )


def test_table_of_a_comparison_names_what_it_left_out():
    lines = table(compare(OLD, NEW)).splitlines()
    assert lines[0].split() == ["v0000", "v0001", "change,", "points", "p"]
    assert "100.0 % [34.2, 100.0]" in lines[2]
    assert "+50.0" in lines[2]
    assert lines[-1] == "2 tasks only in v0000, left out of the change: c, d"


def test_what_was_not_collected_is_a_dash():
    episodes = [episode("a", False, reflected=True, blind=None)]
    assert "blind retry       –" in table(compare(episodes, episodes))


def test_errors_are_counted_by_kind():
    assert table(evaluate([episode("a", True, error="VerifierError")])).endswith("errors: 1 VerifierError")


def test_noisy_verdicts_are_counted():
    [first, *others] = OLD
    spans = [s.model_copy(update={"verdict": s.verdict.model_copy(update={"noisy": True})}) for s in first.spans]
    noisy = first.model_copy(update={"spans": tuple(spans)})
    assert table(evaluate([noisy, *others])).endswith("\n4 episodes of 4 tasks; 1 noisy verdict")
