"""Flips, lengths, leaks and spending of small trees, computed by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from scipy.stats import ttest_ind

from r3agent.evaluate import Behaviour, compare, evaluate, table
from r3agent.evaluate.comparison import StoredComparison, read_comparison, write_comparison
from r3agent.records.cost import Prices
from r3agent.records.trajectory import Trajectory
from tests.evaluate.episodes import episode, span

PRICES = Prices(prompt=1e6, sampled=2e6)  # one and two a token


def counted(
    task: str, first: bool, reflected: bool = False, *, reflect: int = 10, version: str = "v0000"
) -> Trajectory:
    """Each try samples 5 tokens, a reflection `reflect`; every prompt has 3."""
    found = episode(task, first, reflected, version=version)
    spans = [
        s.model_copy(update={"completion_tokens": reflect if s.label == "reflect" else 5, "prompt_tokens": 3})
        for s in found.spans
    ]
    return found.changed(spans=tuple(spans))


def shown(*episodes: Trajectory, prices: Prices | None = None) -> Behaviour:
    found = evaluate(episodes, prices=prices).behaviour
    assert found is not None
    return found


def test_behaviour_counts_flips_of_the_first_try():
    passed = episode("d", True)
    reflection = span("reflect", passed.spans[0], None, "v0000")  # an application reflects on every try
    lost = passed.changed(spans=(*passed.spans, reflection, span("retry", reflection, False, "v0000")))
    found = shown(episode("a", False, True), episode("b", False), episode("c", False), lost, episode("e", True))
    assert found.wrong_to_right is not None
    assert found.right_to_wrong is not None
    assert (found.wrong_to_right.rate, found.wrong_to_right.n_tasks) == (pytest.approx(1 / 3), 3)
    assert (found.right_to_wrong.rate, found.right_to_wrong.n_tasks) == (1.0, 1)


def test_behaviour_divides_tokens_and_cost_by_the_successes():
    found = shown(counted("a", True), counted("b", False, True), counted("c", False), prices=PRICES)
    spent = {cell: (of.tokens, of.cost) for cell, of in found.per_success.items()}
    assert spent == {  # blind retries passed none, so that only the first task is a success
        "first_try": (15, 3 * 13),
        "after_reflection": ((5 + 20 + 20) / 2, (13 + 2 * (13 + 23 + 13)) / 2),
        "blind_retry": (5 + 10 + 10, 13 + 26 + 26),
    }
    assert found.reflection_length is not None
    assert (found.reflection_length.tokens, found.reflection_length.n_tasks) == (10, 2)
    without = shown(counted("a", True), counted("b", False, True))
    assert without.per_success["first_try"].cost is None


def test_behaviour_without_counts_or_successes_has_no_spending():
    assert shown(episode("a", False, True)).per_success == {}
    assert set(shown(counted("a", False, True)).per_success) == {"after_reflection"}
    assert evaluate([episode("a", False, error="PolicyError")]).behaviour is None


def test_behaviour_finds_the_answer_of_a_retry_in_a_reflection():
    texts = {"reflect": "next time write (2 + 3) * 4 = 20 as it is", "retry": "(2 + 3) * 4 = 20", "attempt": "no idea"}
    spans = [s.model_copy(update={"text": texts[s.label]}) for s in episode("a", False, True, blind=None).spans]
    copied = episode("a", False, True, blind=None).changed(spans=tuple(spans))
    found = shown(copied, episode("b", False, True, blind=None))
    assert found.leaks is not None
    assert (found.leaks.rate, found.leaks.n_tasks) == (0.5, 2)


def test_compare_has_welchs_interval_of_the_lengths():
    old = [counted(task, False, reflect=n) for task, n in (("a", 10), ("b", 20), ("c", 30))]
    new = [counted(task, False, reflect=n, version="v0001") for task, n in (("a", 30), ("b", 50))]
    moved = compare(old, new).reflection_length
    welch = ttest_ind([30, 50], [10, 20, 30], equal_var=False)
    assert moved is not None
    assert (moved.tokens, moved.low, moved.high) == pytest.approx((20, *welch.confidence_interval()))
    assert compare(old, new[:1]).reflection_length is None
    same = compare(old, old[:2]).reflection_length
    assert same is not None
    assert same.tokens == -5


def test_table_of_a_comparison_has_flips_and_spending():
    old = [counted("a", True), counted("b", False), counted("c", False)]
    new = [counted("a", False, True, version="v0001"), counted("b", False, True, reflect=40, version="v0001")]
    lines = table(compare(old, new, prices=PRICES)).splitlines()
    flips = "first try 0 up, 1 down; after reflection 1 up, 0 down; blind retry 0 up, 1 down"
    assert f"tasks that changed: {flips}" in lines
    rows = {line[:29].strip(): line[29:].split() for line in lines}
    assert rows["reflection length"][:4] == ["10.0", "tokens", "25.0", "tokens"]
    assert rows["per success, after reflection"] == ["45.0", "tokens,", "111", "USD", "35.0", "tokens,", "79", "USD"]


def test_comparison_on_disk_is_read_by_older_releases(tmp_path: Path):
    found = compare([counted("a", True), counted("b", False)], [counted("a", True, version="v0001")])
    write_comparison(path := tmp_path / "v0000-v0001.test.12345678.json", "digest", found, drawn={"n": 2})
    assert read_comparison(path, "digest") == found
    assert read_comparison(path, "other") is None
    older = StoredComparison.model_validate_json(path.read_bytes()).comparison
    assert "behaviour" not in path.read_text()
    assert "leaks" not in path.read_text()
    assert (older.after_reflection, older.baseline.behaviour) == (found.after_reflection, None)
    (tmp_path / f"whole.{path.name}").unlink()  # an older release wrote it
    assert read_comparison(path, "digest") == older
