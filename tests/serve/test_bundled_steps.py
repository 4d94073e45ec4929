"""The policy in the package that plays by tool calls: its tokens add up over the steps of a try."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from transformers import AutoTokenizer, LlamaForCausalLM

from benchmarks.bundled import steps
from benchmarks.bundled.conversations import SKILL, conversation
from benchmarks.bundled.measure import call_tools, measure
from benchmarks.bundled.pretrain import STEPS, Encoder, pretrain
from r3agent.records.prompts import BLIND_RETRY, REFLECT, RETRY
from r3agent.serve import ServerProcess
from r3agent.serve.http.tool_calls import CallReader
from r3agent.store.models import STEPS_DIR
from r3agent.tasks.countdown_steps import TOOLS, generate
from r3agent.verifiers.countdown_steps import Board


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


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chat completions of the policy on a real server: whole, or put together from a stream."""
    log = tmp_path_factory.mktemp("steps") / "log"
    with (
        ServerProcess("bundled-steps", log_path=log) as server,
        openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0) as client,
    ):
        fields: dict[str, Any] = {"model": "bundled-steps", "logprobs": True, "max_tokens": 24}
        extra = {"return_token_ids": True}

        def ask(messages: list[Any], **more: Any) -> Any:
            return client.chat.completions.create(messages=messages, extra_body=extra, **{**fields, **more})

        yield ask


def test_server_plays_a_game_by_tool_calls(chat: Any, tokenizer: Any) -> None:
    reached = 0
    for task in generate(8, seed=3, split="test"):
        world, messages, seen = Board(**task.info), list[Any](task.messages), list[int]()
        for _ in range(6):
            answer = chat(messages, tools=list(TOOLS), temperature=0)
            [choice] = answer.choices
            assert answer.prompt_token_ids[: len(seen)] == seen
            assert tokenizer.convert_ids_to_tokens(choice.token_ids) == [e.token for e in choice.logprobs.content]
            seen = [*answer.prompt_token_ids, *choice.token_ids]
            calls = choice.message.tool_calls or []
            assert choice.finish_reason == ("tool_calls" if calls else "stop")
            messages.append(choice.message.model_dump(include={"role", "content", "tool_calls"}))
            for call in calls:
                result = world.combine(**json.loads(call.function.arguments))
                messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
            if not calls:
                break
        assert choice.message.content == "Done"
        reached += world.is_won
    assert reached >= 2


@pytest.mark.parametrize("n", [1, 5])
def test_server_streams_tool_calls_as_the_whole_has_them(chat: Any, n: int) -> None:
    for task in generate(3, seed=4):
        asked: dict[str, Any] = {"tools": list(TOOLS), "n": n, "seed": 7, "temperature": 1.5}
        whole = chat(list(task.messages), **asked)
        chunks = [chunk for chunk in chat(list(task.messages), stream=True, **asked) if chunk.choices]
        for choice in whole.choices:
            mine = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == choice.index]
            calls = [call for c in mine for call in c.delta.tool_calls or []]
            called = [call.function for call in choice.message.tool_calls or []]
            assert [(c.index, c.function.name, c.function.arguments) for c in calls] == [
                (i, function.name, function.arguments) for i, function in enumerate(called)
            ]
            assert "".join(c.delta.content or "" for c in mine) == (choice.message.content or "")
            assert [t for c in mine for t in getattr(c, "token_ids", None) or []] == choice.token_ids
            logprobs = [e.logprob for c in mine if c.logprobs for e in c.logprobs.content]
            assert logprobs == pytest.approx([e.logprob for e in choice.logprobs.content], abs=1e-4)
            assert mine[-1].finish_reason == choice.finish_reason


@pytest.mark.parametrize("asked", [{}, {"tools": list(TOOLS), "tool_choice": "none"}])
def test_server_leaves_calls_as_text_where_none_are_wanted(chat: Any, asked: dict[str, Any]) -> None:
    (task,) = generate(1, seed=4)
    [choice] = chat(list(task.messages), temperature=0, **asked).choices
    assert choice.message.tool_calls is None
    assert choice.message.content.startswith(steps.CALL)
    assert choice.finish_reason == "stop"


def test_bundled_steps_succeeds_after_a_good_hint_only(tokenizer: Any) -> None:
    assert (STEPS_DIR / "model.safetensors").stat().st_size <= 4_000_000
    saved = AutoTokenizer.from_pretrained(STEPS_DIR)
    assert (saved.get_vocab(), saved.chat_template) == (tokenizer.get_vocab(), tokenizer.chat_template)
    table = measure(LlamaForCausalLM.from_pretrained(STEPS_DIR), saved, call_tools, n=100)
    assert table["retry_after_oracle_hint"] > table["retry_after_own_reflection"] + 0.2
    assert table["retry_after_oracle_hint"] > table["retry_after_random_hint"] + 0.2
    assert 0.02 < table["first_try"] < 0.5
