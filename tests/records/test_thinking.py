"""Models that think first: nothing of it is lost, and only the model's own chat template feeds it back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r3agent.episodes.graph import build_graph
from r3agent.policy import OpenAIPolicy, Sampling
from r3agent.policy.stream import Assembly
from r3agent.records.thinking import FIELDS, fill_reasoning_fields, split_thinking
from r3agent.records.trajectory import Generation, Task, Trajectory
from r3agent.testing import Fault, ScriptedEndpoint, ScriptedPolicy
from r3agent.testing.tokens import encode

MESSAGES = [{"role": "user", "content": "2 + 2?"}]
INPUT = {"task": Task(messages=tuple(MESSAGES)).model_dump(mode="json")}
THOUGHT, ANSWER = "two and two", "it is 4"


def right(task: Task, answer: str) -> bool:
    return answer == "right"


async def sample(endpoint: ScriptedEndpoint, streamed: bool = False, **extra: Any) -> Generation:
    async with OpenAIPolicy(endpoint.url, endpoint.model, sampling=Sampling(extra=extra)) as policy:
        [generation] = await policy.sample(MESSAGES, on_delta=(lambda *_: None) if streamed else None)
    return generation


@pytest.mark.parametrize("field", FIELDS)
async def test_thinking_beside_the_text_is_recorded_with_all_tokens(field: str) -> None:
    with ScriptedEndpoint({"content": ANSWER, field: THOUGHT}) as endpoint:
        generation = await sample(endpoint)
    assert (generation.text, generation.reasoning) == (ANSWER, THOUGHT)
    assert list(generation.token_ids or ()) == encode(THOUGHT + ANSWER)
    assert generation.capability == "trainable-exact"
    assert generation.message == {"role": "assistant", "content": ANSWER, field: THOUGHT}


async def test_a_server_that_says_it_under_both_names_is_heard_once() -> None:
    with ScriptedEndpoint({"content": ANSWER, "reasoning": THOUGHT, "reasoning_content": THOUGHT}) as endpoint:
        generation = await sample(endpoint)
    assert generation.message == {"role": "assistant", "content": ANSWER, "reasoning": THOUGHT}


@pytest.mark.parametrize("nothing", [None, ""])
async def test_no_thinking_is_no_field(nothing: str | None) -> None:
    with ScriptedEndpoint({"content": ANSWER, "reasoning": nothing}) as endpoint:
        generation = await sample(endpoint)
    assert generation.reasoning is None
    assert generation.message == {"role": "assistant", "content": ANSWER}


async def test_thinking_in_the_text_stays_there() -> None:
    text = f"<think>{THOUGHT}</think>{ANSWER}"
    with ScriptedEndpoint(text) as endpoint:
        generation = await sample(endpoint)
    assert (generation.text, generation.reasoning) == (text, None)
    assert list(generation.token_ids or ()) == encode(text)


@pytest.mark.parametrize("lacking", ["return_token_ids", "logprobs"])
async def test_a_text_without_its_thinking_is_not_tokenised_again(lacking: str) -> None:
    with ScriptedEndpoint({"content": ANSWER, "reasoning": THOUGHT}, ignores=[lacking]) as endpoint:
        generation = await sample(endpoint)
    assert (generation.reasoning, generation.capability) == (THOUGHT, "eval-only")
    assert "its text lacks the thinking" in (generation.capability_note or "")


async def test_a_completion_that_only_thought_is_not_empty() -> None:
    with ScriptedEndpoint({"content": None, "reasoning": THOUGHT}, ignores=["return_token_ids"]) as endpoint:
        generation = await sample(endpoint)
    assert (generation.text, generation.reasoning) == ("", THOUGHT)
    assert "empty" not in (generation.capability_note or "")


# ---- streamed ----


def streamed(*deltas: dict[str, Any]) -> Fault:
    chunks = [{"model": "scripted", "choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks.append({"model": "scripted", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    events = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
    return Fault(body=f"{events}data: [DONE]\n\n", content_type="text/event-stream")


@pytest.mark.parametrize("field", FIELDS)
async def test_streamed_thinking_is_put_together_and_not_told_as_text(field: str) -> None:
    pieces: list[str] = []
    deltas = ({"role": "assistant", "content": ""}, {field: "two "}, {field: "and two"}, {"content": ANSWER})
    with ScriptedEndpoint(faults=[streamed(*deltas)]) as endpoint:
        async with OpenAIPolicy(endpoint.url, endpoint.model) as policy:
            [generation] = await policy.sample(MESSAGES, on_delta=lambda _, text: pieces.append(text))
    assert generation.message == {"role": "assistant", "content": ANSWER, field: THOUGHT}
    assert pieces == [ANSWER]


@given(st.text(min_size=1), st.text(), st.data())
def test_however_it_is_cut_the_stream_is_the_whole(thought: str, answer: str, data: st.DataObject) -> None:
    assembly = Assembly()
    for field, text in (("reasoning", thought), ("content", answer)):
        cut = data.draw(st.integers(0, len(text)))
        for piece in (text[:cut], text[cut:]):
            list(assembly.add({"choices": [{"index": 0, "delta": {field: piece}}]}))
    assert assembly.body["choices"][0]["message"] == {"content": answer, "reasoning": thought}


# ---- in the loop ----


@pytest.mark.parametrize("field", FIELDS)
async def test_it_goes_back_in_the_servers_own_field_and_in_no_prompt(field: str) -> None:
    with ScriptedEndpoint({"content": ANSWER, field: THOUGHT}) as endpoint:
        async with OpenAIPolicy(endpoint.url, endpoint.model) as policy:
            output = await build_graph(policy=policy, verifier=right).compile().ainvoke(INPUT)  # pyright: ignore
    turns = [message for received in endpoint.received for message in received.body["messages"]]
    assert [m for m in turns if m["role"] == "assistant"] == [
        {"role": "assistant", "content": ANSWER, field: THOUGHT} for _ in range(3)
    ]
    assert all(THOUGHT not in m["content"] for m in turns)
    assert {s.reasoning for s in Trajectory.model_validate(output["trajectory"]).spans} == {THOUGHT}


@pytest.mark.parametrize("beside", [True, False])
def test_a_prompt_has_the_thinking_only_if_it_asks_for_it(beside: bool) -> None:
    fields = {"text": ANSWER, "reasoning": THOUGHT} if beside else {"text": f"<think>{THOUGHT}</think>\n\n{ANSWER}"}
    prompts = {"reflect_prompt": "{{ answer }}|{{ thinking }}", "retry_prompt": "{{ reflection }}|{{ answer }}"}
    policy = ScriptedPolicy(Generation(**fields, model="m"))  # pyright: ignore
    output = build_graph(policy=policy, verifier=right, **prompts).compile().invoke(INPUT)  # pyright: ignore
    assert [c.messages[-1]["content"] for c in policy.calls[1:]] == [f"{ANSWER}|{THOUGHT}", f"{ANSWER}|{ANSWER}"]
    assert output["answer"] == ANSWER


async def test_thinking_is_turned_off_with_the_fields_of_the_endpoint() -> None:
    asked = {"chat_template_kwargs": {"enable_thinking": False}}
    with ScriptedEndpoint(ANSWER) as endpoint:
        generation = await sample(endpoint, **asked)
    assert endpoint.received[0].body["chat_template_kwargs"] == {"enable_thinking": False}
    assert generation.sampling["extra"] == asked
    assert generation.capability == "trainable-exact"


# ---- splitting ----


@given(st.text(), st.text())
def test_what_is_thought_and_what_is_said_come_apart(thought: str, said: str) -> None:
    thought, said = thought.replace("</think>", ""), said.lstrip("\n")
    assert split_thinking(f"\n<think>{thought}</think>\n\n{said}") == (thought.strip(), said)


@given(st.text().filter(lambda text: "</think>" not in text and not text.lstrip().startswith("<think>")))
def test_a_text_without_thinking_is_left_as_it_is(text: str) -> None:
    assert split_thinking(text) == ("", text)


def test_a_chat_template_finds_it_under_either_name() -> None:
    both = {"role": "assistant", "content": "4", "reasoning": "2 + 2", "reasoning_content": "2 + 2"}
    for field in FIELDS:
        assert fill_reasoning_fields({"role": "assistant", "content": "4", field: "2 + 2"}) == both
    assert fill_reasoning_fields(MESSAGES[0]) == MESSAGES[0]
