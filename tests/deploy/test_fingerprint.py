from __future__ import annotations

from pathlib import Path

import pytest

from r3agent.deploy.fingerprint import check, fingerprint_of
from r3agent.deploy.server import Server
from r3agent.errors import DeployError
from r3agent.store.registry import FingerprintSequence
from tests.deploy.endpoint import TOKENS, Endpoint, Run, fingerprint, logprobs_of, save_model


def near(old: Path, by: float) -> tuple[FingerprintSequence, ...]:
    """The fingerprint of weights that differ from `old` by `by` nats on every token."""
    return tuple(
        FingerprintSequence(
            token_ids_T=tokens,
            logprobs_T=tuple(x + by * (-1) ** t for t, x in enumerate(logprobs_of(old, tokens))),
            parent_logprobs_T=logprobs_of(old, tokens),
        )
        for tokens in TOKENS
    )


def test_right_weights_arrive(endpoint: Endpoint, tmp_path: Path):
    other = save_model(tmp_path / "other", seed=1)
    with Server(endpoint.url) as server:
        report = check(server, "tiny", fingerprint(endpoint.weights, other))
    assert report.verdict == "arrived"
    assert report.gap == pytest.approx(0, abs=1e-12)
    assert report.parent_gap is not None
    assert report.parent_gap > 0.1
    assert report.n_tokens == sum(len(tokens) - 1 for tokens in TOKENS)


def test_noise_within_the_tolerance_is_no_other_policy(endpoint: Endpoint, tmp_path: Path):
    endpoint.noise = 0.04
    old = save_model(tmp_path / "old", seed=1)
    with Server(endpoint.url) as server:
        report = check(server, "tiny", fingerprint(endpoint.weights, old))
        assert report.verdict == "arrived"
        assert report.gap == pytest.approx(0.04)
        with pytest.raises(DeployError, match=r"0\.04 nats per token from the checkpoint's, the limit is 0\.01"):
            check(server, "tiny", fingerprint(endpoint.weights, old), tolerance=0.01)


def test_old_weights_are_recognised(endpoint: Endpoint, tmp_path: Path):
    new = save_model(tmp_path / "new", seed=1)
    with Server(endpoint.url) as server, pytest.raises(DeployError, match="tiny: the server still serves the old"):
        check(server, "tiny", fingerprint(new, endpoint.weights))


def test_old_weights_are_recognised_through_noise(endpoint: Endpoint, tmp_path: Path):
    endpoint.noise = 0.04
    new = save_model(tmp_path / "new", seed=1)
    with Server(endpoint.url) as server, pytest.raises(DeployError, match="still serves the old weights"):
        check(server, "tiny", fingerprint(new, endpoint.weights))


def test_old_weights_within_the_tolerance_are_recognised(endpoint: Endpoint):
    with Server(endpoint.url) as server, pytest.raises(DeployError, match="still serves the old weights"):
        check(server, "tiny", near(endpoint.weights, 0.02), tolerance=0.05)


def test_half_of_the_weights_is_not_enough(endpoint: Endpoint, tmp_path: Path):
    endpoint.mix_with = save_model(tmp_path / "new", seed=1)
    with Server(endpoint.url) as server, pytest.raises(DeployError, match="arrived in part, or are others"):
        check(server, "tiny", fingerprint(endpoint.mix_with, endpoint.weights))


def test_weights_nobody_can_tell_apart(endpoint: Endpoint):
    endpoint.noise = 0.01
    with Server(endpoint.url) as server:
        report = check(server, "tiny", near(endpoint.weights, 0.02), tolerance=0.05)
    assert report.verdict == "indistinguishable"
    assert report.gap == pytest.approx(report.parent_gap)


def test_unchanged_weights_are_indistinguishable(endpoint: Endpoint):
    with Server(endpoint.url) as server:
        assert check(server, "tiny", near(endpoint.weights, 0.0)).verdict == "indistinguishable"


def test_logprobs_that_are_no_numbers_are_not_right(endpoint: Endpoint, tmp_path: Path):
    endpoint.noise = float("nan")
    with Server(endpoint.url) as server, pytest.raises(DeployError, match="nan nats"):
        check(server, "tiny", fingerprint(endpoint.weights, save_model(tmp_path / "old", seed=1)))


def test_logprobs_after_the_sampling_masks_are_named(endpoint: Endpoint, tmp_path: Path):
    endpoint.processed = True
    says = "every token is 0, .* start vLLM with --logprobs-mode raw_logprobs"
    with Server(endpoint.url) as server, pytest.raises(DeployError, match=says):
        check(server, "tiny", fingerprint(endpoint.weights, save_model(tmp_path / "old", seed=1)))


def test_only_the_named_positions_are_measured(endpoint: Endpoint, tmp_path: Path):
    old = save_model(tmp_path / "old", seed=1)
    named = [s.model_copy(update={"positions_K": (2, 4)}) for s in fingerprint(endpoint.weights, old)]
    with Server(endpoint.url) as server:
        assert check(server, "tiny", named).n_tokens == 2 * len(TOKENS)
    assert endpoint.calls.count("/v1/completions") == 2 * len(TOKENS)


def test_base_is_recognised_by_the_card_of_a_child(run: Run):
    assert fingerprint_of(run.registry, "v0000") == ()
    run.train("lora", seed=1)
    child = run.registry.card("v0001").fingerprint
    for own, of_child in zip(fingerprint_of(run.registry, "v0000"), child, strict=True):
        assert own.logprobs_T == of_child.parent_logprobs_T == logprobs_of(run.base, own.token_ids_T)
        assert own.parent_logprobs_T == of_child.logprobs_T
