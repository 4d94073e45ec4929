"""Distance of recorded logprobs from the starting weights', and which rows are scored to measure it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import pytest
import torch

from r3agent.errors import TrainingError
from r3agent.records.trajectory import Trajectory
from r3agent.train import PolicyStart, Row, TrainConfig
from r3agent.train.mismatch import check, measure, score_rows
from tests.train.versions import run

START = PolicyStart(version="v0001", name="tiny", model="tiny")


def sampled(n: int, tokens: int, noise: float = 0.0, *, version: str | None = "v0001", seed: int = 0) -> list[Row]:
    """Rows in groups of four; recorded logprobs are -2 with normal noise, and the tokens of a row are its number."""
    torch.manual_seed(seed)
    return [
        Row(
            group_id=f"{version}-{i // 4}",
            trajectory_id=f"e{i // 4}",
            span_id=f"r{i % 4}",
            label="reflect",
            policy_version=version,
            prompt_ids_P=[i // 4],
            completion_ids_T=[i] * tokens,
            logprobs_T=(-2.0 + noise * torch.randn(tokens)).tolist(),
            temperature=1.0,
            truncated=False,
            reward=float(i % 2),
            advantage=float(i % 2) - 0.5,
        )
        for i in range(n)
    ]


def checked(rows: Sequence[Row], **values: float | str) -> float | None:
    config = TrainConfig.model_validate({"recipe": "paper", **values})
    mismatch = measure(rows, [[-2.0] * len(row.completion_ids_T) for row in rows], "v0001", config)
    assert check(mismatch, config, START) == []
    return mismatch.ess


# ---- effective sample size ----


@pytest.mark.parametrize("tokens", [700, 4000])
def test_check_passes_long_rows_under_a_bfloat16_servers_noise(tokens: int) -> None:
    assert checked(sampled(32, tokens, 0.04)) == pytest.approx(0.998, abs=1e-3)
    assert checked([*sampled(32, tokens, 0.04), *sampled(32, tokens, 0.04, version="v0000")]) > 0.99
    assert checked(sampled(32, tokens, 0.04, version=None)) > 0.99
    assert checked(sampled(32, tokens, 0.04, version="v0000")) > 0.99


def test_check_passes_imitated_rows_of_a_far_policy() -> None:
    far = [row._replace(label="imitate") for row in sampled(40, 20, 2.0, version="v0000")]
    assert checked(far) is None
    assert checked([*sampled(32, 20), *far]) == pytest.approx(1.0)


@pytest.mark.parametrize("own", [0, 400])
def test_check_refuses_few_rows_of_a_far_policy_among_many(own: int) -> None:
    rows = [*sampled(own, 60), *sampled(8, 60, 1.5, version="v0000")]
    message = r"effective sample size = 0\.\d+ of the tokens that other versions sampled.*limit 0.5.*max_staleness"
    for cap in (3.0, "none"):
        with pytest.raises(TrainingError, match=message):
            checked(rows, max_mismatch=9, importance_cap=cap)
        assert checked(rows, max_mismatch=9, importance_cap=cap, min_ess=0.01) < 0.5


def test_check_counts_no_token_whose_weight_is_capped() -> None:
    rows = sampled(8, 60, 1.5, version="v0000")
    ratios = [math.exp(-2.0 - old) for row in rows for old in row.logprobs_T or ()]

    def ess(weights: Sequence[float]) -> float:
        return sum(weights) ** 2 / sum(w * w for w in weights) / len(weights)

    loose = {"max_mismatch": 9.0, "min_ess": 0.0}
    assert checked(rows, importance_cap="none", **loose) == pytest.approx(ess(ratios))
    below = fmean(w < 3 for w in ratios)
    assert checked(rows, **loose) == pytest.approx(below * ess([min(w, 3.0) for w in ratios]))
    assert checked(rows, importance_mode="token_mask", **loose) == pytest.approx(ess([w * (w <= 3) for w in ratios]))
    products = [math.exp(sum(-2.0 - old for old in row.logprobs_T or ())) for row in rows]
    of_rows = checked(rows, importance_mode="sequence_truncate", **loose)
    assert of_rows == pytest.approx(fmean(w < 3 for w in products) * ess([min(w, 3.0) for w in products]))


def test_check_refuses_rows_whose_every_weight_is_capped() -> None:
    rows = [row._replace(logprobs_T=[-7.0] * 60) for row in sampled(8, 60, version="v0000")]
    with pytest.raises(TrainingError, match=r"effective sample size = 0\.000"):
        checked([*sampled(40, 60), *rows])


def test_check_compares_with_the_noise_of_the_versions_own_rows() -> None:
    noisy, stale = sampled(32, 200, 0.6), sampled(32, 200, 0.6, version="v0000")
    assert checked([*noisy, *stale], max_mismatch=1, min_ess=0.9) < 0.8
    with pytest.raises(TrainingError, match=r"size = 0.7\d+ of the tokens .* sampled, limit 0.9"):
        checked(stale, max_mismatch=1, min_ess=0.9)


# ---- which rows are scored ----


def score_as(logprob: float) -> Callable[[Sequence[tuple[list[int], list[int]]]], list[list[float]]]:
    return lambda pairs: [[logprob] * len(ids) for _, ids in pairs]


def test_score_rows_scores_a_sample_if_it_is_close() -> None:
    rows = sampled(2000, 5)
    scores = score_rows(rows, "v0001", score_as(-2.0))
    chosen = [row for row, score in zip(rows, scores, strict=True) if score is not None]
    assert len(chosen) == 200
    assert len({row.group_id for row in chosen}) == 200
    assert measure(rows, scores, "v0001", TrainConfig(recipe="paper")).scored == 200
    assert scores == score_rows(rows, "v0001", score_as(-2.0))


@pytest.mark.parametrize("gap", [0.0, 0.04, 2.0])
def test_score_rows_scores_all_rows_if_the_sample_is_not_close(gap: float) -> None:
    rows = sampled(400, 5)
    scores = score_rows(rows, "v0001", score_as(-2.0 + gap))
    assert sum(score is not None for score in scores) == (64 if gap == 0 else 400)


def test_score_rows_notices_a_few_rows_of_another_template() -> None:
    rows = sampled(400, 50)
    other = {i for i in range(400) if i % 20 < 4}  # every fifth group

    def score(pairs: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        return [[-2.1 if ids[0] in other else -2.0] * len(ids) for _, ids in pairs]

    assert all(score is not None for score in score_rows(rows, "v0001", score))


def test_score_rows_spares_only_recorded_rows_of_the_version() -> None:
    bare = [row._replace(logprobs_T=None) for row in sampled(100, 5)]
    retries = [row._replace(label="retry") for row in sampled(100, 5)]
    rows = [*sampled(100, 5), *retries, *bare, *sampled(100, 5, version="v0000"), *sampled(100, 5, version=None)]
    scores = score_rows(rows, "v0001", score_as(-2.0))
    counts = [sum(score is not None for score in scores[i : i + 100]) for i in range(0, 500, 100)]
    assert counts == [64, 64, 100, 100, 100]


def test_train_scores_a_sample_and_learns_the_same(
    record: Callable[..., list[Trajectory]], start: PolicyStart, tmp_path: Path
) -> None:
    trajectories = record([[1, 0]] * 40)
    values = {"epochs": 2, "beta": 0.1, "batch_size": 40}
    card = run(trajectories, start, tmp_path / "v0001", **values)
    assert (card.metrics["rows"]["rows"], card.metrics["mismatch"]["scored"]) == (80, 64)
    # a version's name that no row has: all rows are scored
    unstamped = [
        t.model_copy(update={"spans": tuple(s.model_copy(update={"policy_version": None}) for s in t.spans)})
        for t in trajectories
    ]
    other = run(unstamped, start, tmp_path / "v0002", version="v0002", **values)
    assert other.metrics["mismatch"]["scored"] == 80
    for one, two in zip(card.fingerprint, other.fingerprint, strict=True):
        assert one.logprobs_T == pytest.approx(two.logprobs_T, abs=1e-3)
