from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from r3agent.serve.engine.sampling import sample_tokens

uniforms = st.floats(0, 1, exclude_max=True)
temperatures = st.sampled_from([0.0, 0.3, 1.0, 2.0])
top_ps = st.sampled_from([0.1, 0.5, 0.9, 1.0])
rows = st.lists(st.tuples(temperatures, top_ps, uniforms), min_size=1, max_size=6)


def logprobs(n_rows: int, seed: int = 0, vocabulary: int = 50) -> torch.Tensor:
    return (3 * torch.randn(n_rows, vocabulary, generator=torch.Generator().manual_seed(seed))).log_softmax(-1)


@given(rows, st.integers(0, 5))
def test_a_row_does_not_depend_on_the_others(rows: list[tuple[float, float, float]], seed: int) -> None:
    logprobs_BV = logprobs(len(rows), seed)
    together = sample_tokens(logprobs_BV, *zip(*rows, strict=True)).squeeze(1).tolist()
    alone = [sample_tokens(logprobs_BV[i : i + 1], [t], [p], [u]).item() for i, (t, p, u) in enumerate(rows)]
    assert together == alone


@given(st.floats(0.05, 1), uniforms, st.integers(0, 20))
def test_only_the_smallest_likely_set_is_drawn_from(top_p: float, uniform: float, seed: int) -> None:
    logprobs_1V = logprobs(1, seed)
    token = sample_tokens(logprobs_1V, [1.0], [top_p], [uniform]).item()
    more_likely = logprobs_1V[0][logprobs_1V[0] > logprobs_1V[0, token]].exp().sum().item()
    assert more_likely < top_p + 1e-6


@given(rows)
def test_temperature_zero_is_the_most_likely_token(rows: list[tuple[float, float, float]]) -> None:
    logprobs_BV = logprobs(len(rows))
    _, top_ps_B, uniforms_B = zip(*rows, strict=True)
    drawn = sample_tokens(logprobs_BV, [0.0] * len(rows), top_ps_B, uniforms_B)
    assert drawn.squeeze(1).tolist() == logprobs_BV.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_frequencies_are_the_probabilities(temperature: float) -> None:
    n = 20_000
    probs = (logprobs(1, vocabulary=6) / temperature).softmax(-1)[0].tolist()
    grid = [(i + 0.5) / n for i in range(n)]
    drawn = (
        sample_tokens(logprobs(1, vocabulary=6).expand(n, -1), [temperature] * n, [1.0] * n, grid).squeeze(1).tolist()
    )
    counts = Counter(drawn)
    assert [counts[token] / n for token in range(6)] == pytest.approx(probs, abs=2 / n)


@given(uniforms)
def test_impossible_tokens_are_never_drawn(uniform: float) -> None:
    logprobs_1V = torch.tensor([[-torch.inf, 0.0, -torch.inf]])
    assert sample_tokens(logprobs_1V, [1.0], [1.0], [uniform]).item() == 1
