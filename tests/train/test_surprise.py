"""Rows whose requests left sampling settings to the server, which samples otherwise than its logprobs say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from r3agent.errors import TrainingError
from r3agent.records.trajectory import Trajectory
from r3agent.train import PolicyStart
from r3agent.train.report import mismatch_line
from r3agent.train.surprise import measure_surprise
from tests.train.test_mismatch import sampled
from tests.train.versions import run

Record = Callable[..., list[Trajectory]]


def test_train_refuses_a_server_that_narrows_its_sampling(record: Record, start: PolicyStart, tmp_path: Path) -> None:
    shape: dict[str, Any] = {"sampled": 8, "capability_note": "top_k was left to the server"}
    narrow, fair = (record([[1, 0]] * 10, top_k=top_k, **shape) for top_k in (1, 0))
    message = (
        r"surprise = 0\.\d+ ± 0\.\d+ times the entropy over 20 rows .*limit 0.85 to 1.15.*--generation-config vllm"
    )
    with pytest.raises(TrainingError, match=message):
        run(narrow, start, tmp_path / "v0001")
    forced = run(narrow, start, tmp_path / "v0001", force=True)
    assert forced.metrics["forced"][0].startswith("surprise = ")

    card = run(fair, start, tmp_path / "v0002", version="v0002")
    assert card.metrics["mismatch"]["surprise"]["ratio"] == pytest.approx(1, abs=0.2)
    assert "in 20 doubtful rows" in mismatch_line(card.metrics["mismatch"])


@pytest.mark.parametrize(
    ("entropy", "n", "is_off"), [(2.0, 400, False), (1.8, 400, False), (4.0, 400, True), (4.0, 36, False)]
)
def test_measure_surprise_needs_a_clear_difference(entropy: float, n: int, is_off: bool) -> None:
    rows = [row._replace(doubtful=True) for row in sampled(n, 5, 0.1)]

    def entropies(pairs: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        return [[entropy] * 5 for _ in pairs]

    surprise = measure_surprise([*rows, *sampled(40, 5)], "v0001", entropies)
    assert surprise is not None
    assert (surprise.rows, surprise.is_off) == (min(n, 200), is_off)
    assert surprise.ratio == pytest.approx(2 / entropy, rel=0.02)
    assert measure_surprise(rows, "v0002", entropies) is None
