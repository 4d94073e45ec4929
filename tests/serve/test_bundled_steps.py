"""The policy in the package that plays by tool calls: its tokens add up over the steps of a try."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from benchmarks.bundled import steps
from benchmarks.bundled.conversations import SKILL, conversation
from benchmarks.bundled.pretrain import STEPS, Encoder, pretrain
from r3agent.records.prompts import BLIND_RETRY, REFLECT, RETRY
from r3agent.serve.http.tool_calls import CallReader
from r3agent.tasks.countdown_steps import TOOLS, generate


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return steps.build_tokenizer()


def as_objects(message: dict[str, Any]) -> dict[str, Any]:
    """A message with the arguments of its calls as objects, as servers give them to a chat template."""
    calls = message.get("tool_calls") or []
    functions = [{**c["function"], "arguments": json.loads(c["function"]["arguments"])} for c in calls]
    return {**message, "tool_calls": [{**c, "function": f} for c, f in zip(calls, functions, strict=True)]}


def test_encoder_sees_what_the_template_of_steps_makes(tokenizer: Any) -> None:
    encode = Encoder(tokenizer)
    for task in generate(20, seed=1):
        messages = conversation(task, SKILL, random.Random(task.id), steps.play)
        ids, _ = encode(messages)
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.apply_chat_template(messages)["input_ids"] == ids
        assert tokenizer.apply_chat_template([*map(as_objects, messages)], tools=list(TOOLS))["input_ids"] == ids


def test_tokens_of_a_call_come_back_in_the_next_prompt(tokenizer: Any) -> None:
    def prompt(messages: list[Any], tools: bool = True) -> list[int]:
        options: dict[str, Any] = {"tools": list(TOOLS)} if tools else {}
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, **options)["input_ids"]

    (task,) = generate(1, seed=5)
    messages: list[Any] = list(task.messages)
    seen = prompt(messages)
    for a, op, b in [(9, "*", 3), (100, "-", 0), (7, "/", 7), (2, "+", 4)]:
        call = [steps.CALL, str(a), steps.OPERATIONS[op], str(b), steps.CALL_END]
        sampled = tokenizer.convert_tokens_to_ids([*call, "<|end|>"])
        text = tokenizer.decode(sampled, skip_special_tokens=True)
        content, calls = CallReader().read(text, last=True)
        assert content == ""
        assert [json.loads(c["function"]["arguments"]) for c in calls] == [{"a": a, "op": op, "b": b}]
        result = {"role": "tool", "tool_call_id": calls[0]["id"], "content": "left: 3, 4"}
        messages += [as_objects({"role": "assistant", "content": None, "tool_calls": calls}), result]
        assert prompt(messages)[: len(seen) + len(sampled)] == [*seen, *sampled]
        seen = prompt(messages)
    assert prompt([*messages, {"role": "user", "content": REFLECT}], tools=False)[: len(seen) - 1] == seen[:-1]


def test_prompts_of_the_loop_have_words_that_steps_knows(tokenizer: Any) -> None:
    assert len({tuple(tokenizer(p)["input_ids"]) for p in ("", REFLECT, RETRY, BLIND_RETRY)}) == 4


def test_pretrain_saves_a_policy_of_steps(tmp_path: Any) -> None:
    pretrain(tmp_path, game=STEPS, lessons=[STEPS.lessons[0]._replace(n_steps=1, batch=2)])
    assert (tmp_path / "model.safetensors").stat().st_size <= 4_000_000
