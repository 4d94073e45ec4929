"""The policy in the package: small, self-contained, and led by its reflection."""

from __future__ import annotations

import random

import pytest
from transformers import AutoTokenizer, LlamaForCausalLM

from benchmarks.bundled.conversations import HABITS, SKILL, SOLVE, conversation, good_steps, play
from benchmarks.bundled.measure import measure
from benchmarks.bundled.pretrain import LESSONS, Encoder, pretrain
from benchmarks.bundled.tokenizer import build_tokenizer
from r3agent.records.prompts import BLIND_RETRY, REFLECT, RETRY
from r3agent.store.models import BUNDLED_DIR
from r3agent.tasks.countdown import generate
from r3agent.verifiers.countdown import countdown


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BUNDLED_DIR)


def test_weights_are_small_and_safetensors():
    assert (BUNDLED_DIR / "model.safetensors").stat().st_size <= 4_000_000
    assert not list(BUNDLED_DIR.glob("*.bin"))


def test_bundled_policy_succeeds_after_a_good_hint_only(tokenizer):
    model = LlamaForCausalLM.from_pretrained(BUNDLED_DIR)
    table = measure(model, tokenizer, n=150)
    assert table["retry_after_oracle_hint"] > table["retry_after_own_reflection"] + 0.25
    assert table["retry_after_oracle_hint"] > table["retry_after_random_hint"] + 0.25
    assert 0.05 < table["first_try"] < 0.5


def test_the_saved_tokenizer_is_the_one_that_is_built(tokenizer):
    built = build_tokenizer()
    text = "<|user|> Using 3, 14 and 59 equals 100 again ( 3 + 4 ) <answer> frobnicate"
    assert tokenizer(text)["input_ids"] == built(text)["input_ids"]
    assert built.decode(built("Start with 6 * 5 = 30")["input_ids"]) == "Start with 6 * 5 = 30"


def test_the_trainer_sees_what_the_chat_template_makes(tokenizer):
    encode = Encoder(build_tokenizer())
    for task in generate(20, seed=1):
        messages = conversation(task, SKILL, random.Random(task.id))
        ids, mask = encode(messages)
        assert ids == tokenizer.apply_chat_template(messages)["input_ids"]
        said = tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m], skip_special_tokens=True)
        assert said.split() == " ".join(m["content"] for m in messages if m["role"] == "assistant").split()


def test_pretrain_saves_a_policy_with_its_tokenizer(tmp_path):
    pretrain(tmp_path, lessons=[LESSONS[0]._replace(n_steps=1)])
    model = LlamaForCausalLM.from_pretrained(tmp_path)
    assert model.num_parameters() == LlamaForCausalLM.from_pretrained(BUNDLED_DIR).num_parameters()
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == model.config.vocab_size


def test_every_prompt_of_the_loop_has_words_it_knows(tokenizer):
    lengths = {prompt: len(tokenizer(prompt)["input_ids"]) for prompt in (REFLECT, RETRY, BLIND_RETRY)}
    assert all(lengths.values())
    assert len({tuple(tokenizer(p)["input_ids"]) for p in lengths}) == 3


@pytest.mark.parametrize("mixture", [SOLVE, SKILL, HABITS])
def test_conversations_use_each_number_once(mixture):
    for task in generate(30, seed=2):
        for message in conversation(task, mixture, random.Random(0)):
            if message["role"] == "assistant" and "<answer>" in message["content"]:
                assert "once each" not in (countdown(task, message["content"]).feedback or "")


def test_good_steps_reach_the_target():
    for task in generate(30, seed=3):
        given, target = tuple(task.info["numbers"]), task.info["target"]
        for step in good_steps(given, target):
            assert countdown(task, play(step, target, random.Random(0))[0]).passed
