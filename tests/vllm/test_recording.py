"""The tokens that a real vLLM server sampled are recorded, in every mode; transformers gives the same logprobs.

The modes that lose tokens are known to the record: they are not trainable, and it says why.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from r3agent import OpenAIPolicy, Sampling, collect
from r3agent.errors import ContextLengthError
from r3agent.records.trajectory import Generation
from r3agent.serve.process.vllm import VLLMProcess
from r3agent.store.models import BUNDLED_DIR
from r3agent.tasks import find_tasks
from r3agent.verifiers import find_verifier
from tests.deploy.trained import logprobs_of
from tests.vllm.bytes_model import ANSWER, CALL, THOUGHT, bytes_tokenizer, save_bytes_model
from tests.vllm.conftest import LITTLE_MEMORY

FLOAT32_GAP = 1e-4
"""Nats; found: 5e-6 at most."""
BFLOAT16_GAP = 0.15
"""Nats, of one token; the mean is a tenth of it."""

MESSAGES = [{"role": "user", "content": "Numbers: 3 5 7. Target: 22."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "move",
        "schema": {
            "type": "object",
            "properties": {"op": {"enum": ["+", "-"]}, "sure": {"type": "boolean"}},
            "required": ["op", "sure"],
            "additionalProperties": False,
        },
    },
}
BYTES = (*LITTLE_MEMORY, "--dtype", "bfloat16", "--max-model-len", "1024", "--enforce-eager")
BYTES += (
    "--structured-outputs-config",
    '{"backend": "xgrammar", "disable_any_whitespace": true}',
)  # or a grammar may go on for ever
FREE = ("plain", "tools")
"""Modes in which no grammar has a say."""
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "tools": {"tools": (WEATHER,)},
    "named tool": {"tools": (WEATHER,), "tool_choice": {"type": "function", "function": {"name": "weather"}}},
    "required tool": {"tools": (WEATHER,), "tool_choice": "required"},
    "json schema": {"response_format": SCHEMA},
}


STREAMED = pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])


def gaps(generation: Generation, model: Any) -> list[float]:
    """|recorded - transformers'| for each sampled token."""
    prompt, sampled = generation.prompt_token_ids or (), generation.token_ids or ()
    scored = logprobs_of(model, [*prompt, *sampled])[len(prompt) :]
    return [abs(a - b) for a, b in zip(generation.logprobs or (), scored, strict=True)]


@pytest.fixture(scope="module")
def bytes_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bytes_model(tmp_path_factory.mktemp("model") / "bytes", MESSAGES, [WEATHER])


def started(model: Path, log: Path, *options: str) -> VLLMProcess:
    """The bytes model in bfloat16, with a tool parser."""
    speaks = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    return VLLMProcess(model, name="bytes", log_path=log, options=[*BYTES, *speaks, *options])


@pytest.fixture(scope="module")
def speaker(bytes_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMProcess]:
    with started(bytes_model, tmp_path_factory.mktemp("speaker") / "log") as server:
        yield server


@pytest.fixture(scope="module")
def thinker(bytes_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMProcess]:
    """The bytes model with a reasoning parser as well."""
    log = tmp_path_factory.mktemp("thinker") / "log"
    with started(bytes_model, log, "--reasoning-parser", "deepseek_r1") as server:
        yield server


@STREAMED
async def test_plain_chat_is_recorded_exactly(vllm: VLLMProcess, streamed: bool) -> None:
    pieces: dict[int, str] = {}

    def on_delta(choice: int, text: str) -> None:
        pieces[choice] = pieces.get(choice, "") + text

    async with OpenAIPolicy(vllm.base_url, "bundled", sampling=Sampling(max_tokens=24)) as policy:
        drawn = await policy.sample(MESSAGES, n=4, on_delta=on_delta if streamed else None)
    model = AutoModelForCausalLM.from_pretrained(BUNDLED_DIR)
    assert [g.capability for g in drawn] == ["trainable-exact"] * 4
    assert len({g.text for g in drawn}) > 1
    assert max(gap for g in drawn for gap in gaps(g, model)) < FLOAT32_GAP
    if streamed:
        assert [pieces[i] for i in range(4)] == [g.text for g in drawn]


async def drawn_from(server: VLLMProcess, mode: str, *, n: int, streamed: bool, temperature: float) -> list[Generation]:
    asked = dict(MODES[mode])
    tools = asked.pop("tools", ())
    sampling = Sampling(max_tokens=200, temperature=temperature, extra=asked)
    async with OpenAIPolicy(server.base_url, "bytes", sampling=sampling) as policy:
        return await policy.sample(MESSAGES, n=n, tools=tools, on_delta=(lambda *_: None) if streamed else None)


def assert_exact_or_says_why_not(drawn: list[Generation], bytes_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(bytes_model)
    print([(g.capability, g.capability_note, len(g.token_ids or ())) for g in drawn])
    for generation in drawn:
        assert (generation.capability == "trainable-exact") == (generation.capability_note is None)
        if generation.capability == "trainable-exact":
            apart = gaps(generation, model)
            assert len(apart) == generation.completion_tokens
            assert max(apart) < BFLOAT16_GAP


@STREAMED
@pytest.mark.parametrize("mode", MODES)
async def test_every_mode_is_exact_or_says_why_not(
    speaker: VLLMProcess, bytes_model: Path, mode: str, streamed: bool
) -> None:
    drawn = await drawn_from(speaker, mode, n=2, streamed=streamed, temperature=1.0)
    assert_exact_or_says_why_not(drawn, bytes_model)
    if mode in FREE and not streamed:
        assert {g.capability for g in drawn} == {"trainable-exact"}
    if mode not in FREE:
        assert all("grammar" in (g.capability_note or "") for g in drawn)
    if mode == "json schema":
        assert all(json.loads(g.text).keys() == {"op", "sure"} for g in drawn)
    if mode in ("named tool", "required tool"):
        assert [name_of_call(g) for g in drawn] == ["weather"] * 2


COLD = "sampled with temperature = 0.1: not from what its logprobs describe"


@STREAMED
@pytest.mark.parametrize("mode", FREE)
@pytest.mark.parametrize("parsers", ["speaker", "thinker"])
async def test_what_a_parser_takes_out_of_the_text_stays_in_the_tokens(
    request: pytest.FixtureRequest, bytes_model: Path, parsers: str, mode: str, streamed: bool
) -> None:
    server: VLLMProcess = request.getfixturevalue(parsers)
    drawn = await drawn_from(server, mode, n=2, streamed=streamed, temperature=0.1)
    assert_exact_or_says_why_not(drawn, bytes_model)
    said = CALL if mode == "tools" else ANSWER
    ids = bytes_tokenizer()(f"{THOUGHT}{said}<|end|>", add_special_tokens=False)["input_ids"]
    for generation in drawn:
        if generation.capability_note == COLD:
            assert list(generation.token_ids) == ids
        if mode == "tools":
            assert name_of_call(generation) == "weather"
        thought = THOUGHT if parsers == "speaker" else ""
        assert generation.text == thought + ("" if mode == "tools" else ANSWER)
        # vLLM keeps the opening tag if the streamed chunk that carries it carries more tokens.
        handed_over = (generation.reasoning or "").removeprefix("<think>")
        assert f"<think>{handed_over}</think>" == (THOUGHT if parsers == "thinker" else "<think></think>")
    if not streamed:
        assert {g.capability_note for g in drawn} == {
            "sampled with temperature = 0.1: not from what its logprobs describe"
        }
        assert all(g.token_ids for g in drawn)


def name_of_call(generation: Generation) -> str:
    [call] = generation.tool_calls
    return call["function"]["name"]


async def test_a_collection_counts_what_it_holds(vllm: VLLMProcess, tmp_path: Path) -> None:
    tasks = find_tasks("countdown", 16, seed=3)
    async with OpenAIPolicy(vllm.base_url, "bundled", sampling=Sampling(max_tokens=24)) as policy:
        summary = await collect(
            tasks, policy=policy, verifier=find_verifier("countdown"), out=tmp_path, reflections=4, blind_retries=1
        )
    assert summary.errors == {}
    assert summary.capabilities.keys() == {"trainable-exact"}
    assert summary.mixed_versions == 0


@STREAMED
async def test_a_conversation_too_long_for_the_context_is_named(vllm: VLLMProcess, streamed: bool) -> None:
    streaming = {"on_delta": lambda choice, text: None} if streamed else {}
    async with OpenAIPolicy(vllm.base_url, "bundled", sampling=Sampling(max_tokens=8)) as policy:
        for n in (300, 100_000):  # vLLM words the two differently
            with pytest.raises(ContextLengthError):
                await policy.sample([{"role": "user", "content": "1 " * n}], **streaming)
        [cut] = await policy.sample(MESSAGES, sampling=Sampling(max_tokens=2), **streaming)
        assert cut.unfinished == "length"
