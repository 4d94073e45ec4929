"""The doctor finds samplers that are not what their logprobs say, and accuses no other."""

from __future__ import annotations

import random
from typing import Any

import pytest

from r3agent.doctor import Diagnosis, diagnose, report
from r3agent.doctor.diagnosis import NAMES
from r3agent.testing.http import JsonServer
from tests.doctor.sampling import SamplingServer

CHECKS = ("sampling", "sampling by default", "logprobs at temperature 1")
ALL = ("top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
RESHAPED = ({"top_k": 1}, {"top_k": 3}, {"temperature": 0.5}, {"top_p": 0.8})


async def diagnosed(**settings: Any) -> Diagnosis:
    with JsonServer(SamplingServer(**settings)) as server:
        return await diagnose(server.url)


def statuses(diagnosis: Diagnosis) -> list[str]:
    return [check.status for name in CHECKS for check in diagnosis.checks if check.name == name]


async def test_a_sampler_that_follows_its_logprobs_is_cleared() -> None:
    for seed in range(10):
        diagnosis = await diagnosed(rng=random.Random(seed))
        assert (statuses(diagnosis), diagnosis.tier) == (["yes"] * 3, "trainable-exact")
    assert {*CHECKS} <= {*NAMES}


@pytest.mark.parametrize("defaults", RESHAPED, ids=str)
async def test_defaults_that_a_request_can_set_are_named(defaults: dict[str, Any]) -> None:
    diagnosis = await diagnosed(defaults=defaults)
    assert (statuses(diagnosis), diagnosis.tier) == (["yes", "no", "yes"], "trainable-exact")
    assert "--generation-config vllm" in report(diagnosis)


@pytest.mark.parametrize("defaults", [{"top_k": 1}, {"top_k": 3}], ids=str)
@pytest.mark.parametrize("how", ["refuses", "ignores"])
async def test_defaults_that_no_request_can_set_are_a_fault(defaults: Any, how: str) -> None:
    diagnosis = await diagnosed(defaults=defaults, **{how: ALL})
    assert (statuses(diagnosis), diagnosis.tier) == (["no", "no", "yes"], "eval-only")
    [step] = diagnosis.next_steps
    assert "the sampler is not the policy that the logprobs describe" in step


async def test_identical_completions_convict_without_likely_tokens() -> None:
    diagnosis = await diagnosed(defaults={"top_k": 1}, refuses=(*ALL, "top_logprobs"))
    assert (statuses(diagnosis), diagnosis.tier) == (["no", "no", "unknown"], "eval-only")
    clean = await diagnosed(refuses=("top_logprobs",))
    assert (statuses(clean), clean.tier) == (["yes", "yes", "unknown"], "trainable-exact")


async def test_processed_logprobs_are_recognised() -> None:
    diagnosis = await diagnosed(processed=True)
    assert statuses(diagnosis) == ["yes", "yes", "no"]
    assert "--logprobs-mode raw_logprobs" in report(diagnosis)
    assert statuses(await diagnosed(processed=True, defaults={"top_k": 3}))[:2] == ["yes", "yes"]


@pytest.mark.parametrize("entry", [{"token": "a"}, {"logprob": -1.0}, {"token": "a", "logprob": None}])
async def test_likely_tokens_that_are_not_whole_prove_nothing(entry: dict[str, Any]) -> None:
    class Broken(SamplingServer):
        def choice(self, index: int, asked: dict[str, Any]) -> dict[str, Any]:
            choice = super().choice(index, asked)
            for token in choice["logprobs"]["content"]:
                token["top_logprobs"] = [entry]
            return choice

    with JsonServer(Broken()) as server:
        diagnosis = await diagnose(server.url)
    assert (statuses(diagnosis), diagnosis.tier) == (["unknown"] * 3, "trainable-exact")
