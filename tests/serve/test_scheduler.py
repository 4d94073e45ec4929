from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r3agent.serve.engine.request import GenerationRequest, SequenceState
from r3agent.serve.engine.scheduler import MAX_PREFILL_TOKENS, MAX_STEPS_WAITED, Admission


def sequences(
    prompt_length: int, max_tokens: int = 10, n: int = 1, *, scores_prompt: bool = False
) -> list[SequenceState]:
    """All sequences of one request."""
    request = GenerationRequest([1] * prompt_length, max_tokens, n, prompt_logprobs=0 if scores_prompt else None)
    return [SequenceState(request, index, random.Random(0), None) for index in range(n)]


requests = st.tuples(st.integers(1, 400), st.integers(1, 100), st.integers(1, 5))


@given(st.lists(requests, max_size=20), st.integers(1, 8), st.integers(500, 5000))
def test_every_row_joins_once_in_order_and_within_the_limits(
    asked: list[tuple[int, int, int]], max_batch: int, max_tokens: int
) -> None:
    admission = Admission(max_batch, max_tokens)
    queued = [sequence for request in asked for sequence in sequences(*request)]
    admission.extend(queued)
    joined: list[SequenceState] = []
    while len(admission):
        taken = admission.take([])
        assert 0 < len(taken) <= max_batch
        assert len(taken) * max(sequence.request.max_length for sequence in taken) <= max_tokens
        prompts = {sequence.request: len(sequence.request.prompt_token_ids) for sequence in taken}
        assert len(prompts) == 1 or len(prompts) * max(prompts.values()) <= MAX_PREFILL_TOKENS
        joined += taken
    assert joined == queued


def test_a_busy_batch_gathers_company_but_not_for_long() -> None:
    admission = Admission(64, 100_000)
    batch = sequences(5, n=32)
    admission.take([])
    admission.extend(sequences(5))
    waits = [admission.take(batch) for _ in range(MAX_STEPS_WAITED)]
    assert [len(taken) for taken in waits] == [0] * (MAX_STEPS_WAITED - 1) + [1]


@pytest.mark.parametrize("batch_size", [0, 8])
def test_an_eighth_of_the_batch_joins_at_once(batch_size: int) -> None:
    admission = Admission(64, 100_000)
    admission.extend(sequences(5))
    assert len(admission.take(sequences(5, n=batch_size))) == 1


def test_a_prompt_to_score_is_read_alone() -> None:
    admission = Admission(64, 100_000)
    for request in (sequences(5), sequences(5, scores_prompt=True), sequences(5), sequences(5)):
        admission.extend(request)
    assert [len(admission.take([])) for _ in range(3)] == [1, 1, 2]


def test_removed_requests_do_not_join() -> None:
    admission = Admission(64, 100_000)
    gone, stays = sequences(5, n=3), sequences(5, n=2)
    admission.extend(gone + stays)
    admission.remove({gone[0].request})
    assert admission.take([]) == stays
