"""Outcome of each fault of an endpoint, for whole and streamed answers: nothing half is recorded as whole."""

from __future__ import annotations

from itertools import islice

import pytest

from r3agent.errors import AccessError, ConfigError, EndpointError, R3Error
from r3agent.policy import OpenAIPolicy
from r3agent.records.trajectory import Generation
from r3agent.testing import FATAL, FAULTS, Fault, ScriptedEndpoint, random_faults

MESSAGES = [{"role": "user", "content": "hello"}]
TEXT = "an answer of five words"
AT_ONCE = {"wrong_type", "no_usage", "fewer_choices", "miscounted", "length", "content_filter"}
"""Faults whose answer is taken as it is."""
BROKEN_OFF = {"cut_off", "truncated"}
"""Faults that end a stream after its beginning was shown, so that it is not tried again."""


async def draw(*faults: Fault | None, stream: bool = False, n: int = 1) -> tuple[list[Generation], int]:
    """Return the generations and the number of requests, of a server that has answered before."""
    told: list[str] = []

    def tell(index: int, text: str) -> None:
        told.append(text)

    timeout_s = 0.5 if any(fault and fault.kind in ("hang", "trickle") for fault in faults) else 60
    with ScriptedEndpoint(TEXT, faults=[None, *faults]) as endpoint:
        async with OpenAIPolicy(endpoint.url, "scripted", max_tries=2, timeout_s=timeout_s, outage_s=1) as policy:
            await policy.sample(MESSAGES)
            drawn = await policy.sample(MESSAGES, n=n, on_delta=tell if stream else None)
    assert not stream or "".join(told) == TEXT * n
    return drawn, len(endpoint.received) - 1


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", sorted(FAULTS.keys() - AT_ONCE - FATAL))
async def test_fault_that_passes_is_tried_again(name: str, stream: bool) -> None:
    if stream and name in BROKEN_OFF:
        with pytest.raises(EndpointError):
            await draw(FAULTS[name], stream=True)
        return
    [generation], requests = await draw(FAULTS[name], stream=stream)
    assert (generation.text, generation.capability, requests) == (TEXT, "trainable-exact", 2)
    assert len(generation.token_ids or ()) == len(generation.logprobs or ()) == len(TEXT) + 1


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", sorted(AT_ONCE))
async def test_fault_within_an_answer_is_recorded(name: str, stream: bool) -> None:
    drawn, requests = await draw(FAULTS[name], stream=stream, n=2)
    assert [generation.text for generation in drawn] == [TEXT] * 2
    assert requests == (2 if name == "fewer_choices" else 1)
    exact = "trainable-exact"
    capability = {"miscounted": ["eval-only"] * 2, "content_filter": ["eval-only", exact]}.get(name, [exact] * 2)
    assert [generation.capability for generation in drawn] == capability
    assert drawn[0].finish_reason == (name if name in ("length", "content_filter") else "stop")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", sorted(FATAL))
async def test_fatal_fault_is_not_tried_again(name: str, stream: bool) -> None:
    with pytest.raises(AccessError, match=r"check the API key|check the model's name|no credit left"):
        await draw(FAULTS[name], stream=stream)


@pytest.mark.parametrize("name", sorted(FAULTS.keys() - AT_ONCE))
async def test_fault_that_stays_is_an_error(name: str) -> None:
    with pytest.raises(R3Error, match=r"^http://127"):
        await draw(*[FAULTS[name]] * 40)


def test_faults_are_drawn_at_a_rate_and_again_from_a_seed() -> None:
    drawn = list(islice(random_faults(0.1, seed=1), 5000))
    assert 400 < sum(fault is not None for fault in drawn) < 600
    assert {id(fault) for fault in drawn if fault} == {id(FAULTS[name]) for name in FAULTS.keys() - FATAL}
    assert drawn == list(islice(random_faults(0.1, seed=1), 5000))
    with pytest.raises(ConfigError, match="did you mean"):
        random_faults(0.1, kinds=["hangs"])
