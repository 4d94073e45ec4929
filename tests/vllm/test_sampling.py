"""Sampling on real vLLM when the model's generation_config.json has settings of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import openai
import pytest

import r3agent
from r3agent.doctor import diagnose, report
from r3agent.policy import OpenAIPolicy, Sampling
from r3agent.records.sampling import NEUTRAL
from r3agent.serve.process.vllm import VLLMProcess
from r3agent.store.models import BUNDLED_DIR
from tests.vllm.conftest import SMALL

MESSAGES = [{"role": "user", "content": "Say something."}]
AS_STOCK = (*SMALL, "--no-enable-lora", "--generation-config", "auto")
"""vLLM's own default, in place of r3agent's."""


@pytest.fixture(scope="module")
def greedy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMProcess]:
    model = tmp_path_factory.mktemp("greedy") / "model"
    shutil.copytree(BUNDLED_DIR, model)
    path = model / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_sample": True, "top_k": 1}))
    with VLLMProcess(model, name="greedy", options=AS_STOCK) as server:
        yield server


async def test_the_models_settings_do_not_reach_the_policy(greedy: VLLMProcess) -> None:
    async with OpenAIPolicy(greedy.base_url, "greedy", sampling=Sampling(max_tokens=16)) as policy:
        drawn = await policy.sample(MESSAGES, n=32)
    assert len({generation.token_ids for generation in drawn}) > 10
    assert {(generation.capability, generation.capability_note) for generation in drawn} == {("trainable-exact", None)}
    assert all(generation.sampling.items() >= NEUTRAL.items() for generation in drawn)


async def test_the_models_settings_are_found_by_the_doctor(greedy: VLLMProcess) -> None:
    diagnosis = await diagnose(greedy.base_url)
    found = {check.name: check.status for check in diagnosis.checks}
    assert (found["sampling"], found["sampling by default"]) == ("yes", "no"), report(diagnosis)
    assert found["logprobs at temperature 1"] == "yes", report(diagnosis)
    assert diagnosis.tier == "trainable-exact"


async def test_an_application_that_leaves_them_to_the_model_is_warned(greedy: VLLMProcess) -> None:
    client = r3agent.instrument(openai.AsyncOpenAI(base_url=greedy.base_url, api_key="EMPTY"))
    async with client:
        with r3agent.trace() as episode:
            for _ in range(2):
                await client.chat.completions.create(model="greedy", messages=MESSAGES, max_tokens=16)
    first, second = episode.spans
    assert first.token_ids == second.token_ids
    assert "the server decided on temperature, top_p, top_k" in (first.capability_note or "")
