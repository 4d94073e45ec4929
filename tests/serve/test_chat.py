"""Chat completions through the real server, with OpenAI's client where it knows the fields."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import httpx
import openai
import orjson
import pytest

from benchmarks.bundled.tokenizer import build_tokenizer
from r3agent._util.wait import wait_until
from r3agent.records.thinking import FIELDS
from r3agent.serve import Engine, create_app
from r3agent.serve.engine.model import ServedModel
from r3agent.serve.http.prompts import chat_prompt
from r3agent.serve.http.protocol import ChatCompletionRequest
from tests.serve import tiny

MESSAGES: list[Any] = [{"role": "user", "content": "Using 3 4 5 equals 17"}]
PROMPT = [4, 16, 27, 28, 29, 17, 41, 2, 5]
"""The messages through the chat template."""


@pytest.mark.parametrize("field", FIELDS)
def test_chat_prompt_has_reasoning_under_the_templates_name(served: ServedModel, field: str) -> None:
    tokenizer = copy(served.tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.reasoning_content }} {{ m.content }} {% endfor %}"
    thought = {"role": "assistant", "content": "17", field: "3 4 5"}
    request = ChatCompletionRequest.model_validate({"model": "tiny", "messages": [*MESSAGES, thought]})
    prompt = chat_prompt(replace(served, tokenizer=tokenizer), request)
    assert prompt == tokenizer(" Using 3 4 5 equals 17 3 4 5 17 ", add_special_tokens=False)["input_ids"]


def test_a_completion_has_vllms_fields(chat: Callable[..., httpx.Response], checkpoint: Path) -> None:
    answer = chat(temperature=0, n=2, logprobs=True, top_logprobs=3, return_token_ids=True, ignore_eos=True).json()
    token_ids, logprobs = tiny.greedy(tiny.reference(checkpoint), PROMPT, 8)
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "tiny"
    assert answer["prompt_token_ids"] == PROMPT
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    tokenizer = build_tokenizer()
    for choice in answer["choices"]:
        assert choice["token_ids"] == token_ids
        assert choice["message"] == {
            "role": "assistant",
            "content": tokenizer.decode(token_ids, skip_special_tokens=True),
        }
        content = choice["logprobs"]["content"]
        assert [entry["logprob"] for entry in content] == pytest.approx(logprobs, abs=1e-4)
        assert [entry["token"] for entry in content] == [tokenizer.decode([t]) for t in token_ids]
        assert all(entry["bytes"] == list(entry["token"].encode()) for entry in content)
        assert all(entry["top_logprobs"][0]["logprob"] == entry["logprob"] for entry in content)
        assert {len(entry["top_logprobs"]) for entry in content} == {3}
        assert (choice["finish_reason"], choice["stop_reason"]) == ("length", None)
    assert answer["usage"] == {"prompt_tokens": 9, "completion_tokens": 16, "total_tokens": 25}


def test_what_is_not_asked_for_is_not_sent(chat: Callable[..., httpx.Response]) -> None:
    answer = chat().json()
    assert answer["prompt_token_ids"] is None
    assert (answer["choices"][0]["token_ids"], answer["choices"][0]["logprobs"]) == (None, None)


def test_the_token_that_ends_the_turn_is_counted_and_not_shown(chat: Callable[..., httpx.Response]) -> None:
    answer = chat(n=64, max_tokens=40, temperature=2, logprobs=True, return_token_ids=True, seed=1).json()
    end = build_tokenizer().eos_token_id
    ended = [choice for choice in answer["choices"] if choice["finish_reason"] == "stop"]
    assert 0 < len(ended) < 64
    for choice in answer["choices"]:
        assert (choice["token_ids"][-1] == end) == (choice in ended)
        assert end not in choice["token_ids"][:-1]
        assert "<|end|>" not in choice["message"]["content"]
        assert len(choice["logprobs"]["content"]) == len(choice["token_ids"])
        assert choice["stop_reason"] is None
    assert answer["usage"]["completion_tokens"] == sum(len(choice["token_ids"]) for choice in answer["choices"])


def test_logprobs_are_those_before_the_temperature(chat: Callable[..., httpx.Response]) -> None:
    hot, cold = (chat(temperature=t, logprobs=True, top_logprobs=5).json()["choices"][0] for t in (2.0, 0.0))
    first_hot, first_cold = (choice["logprobs"]["content"][0]["top_logprobs"] for choice in (hot, cold))
    assert [e["logprob"] for e in first_hot] == pytest.approx([e["logprob"] for e in first_cold], abs=1e-4)


def test_a_seed_repeats_itself(chat: Callable[..., httpx.Response]) -> None:
    def texts(seed: int) -> list[str]:
        return [choice["message"]["content"] for choice in chat(n=3, seed=seed).json()["choices"]]

    assert texts(5) == texts(5)
    assert texts(5) != texts(6)


def test_a_stop_string_ends_the_text_before_it(chat: Callable[..., httpx.Response]) -> None:
    whole = chat(temperature=0, return_token_ids=True).json()["choices"][0]
    words = whole["message"]["content"].split(" ")
    stop = f"{words[3]} {words[4]}"
    stopped = chat(temperature=0, stop=[stop, "never"], return_token_ids=True).json()["choices"][0]
    assert stopped["message"]["content"] == whole["message"]["content"].split(stop)[0]
    assert (stopped["finish_reason"], stopped["stop_reason"]) == ("stop", stop)
    assert whole["token_ids"][: len(stopped["token_ids"])] == stopped["token_ids"]


def test_without_max_tokens_the_context_is_the_limit(chat: Callable[..., httpx.Response]) -> None:
    answer = chat(max_tokens=None, ignore_eos=True).json()
    assert answer["usage"]["total_tokens"] == tiny.MAX_LENGTH
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("stop", [None, ["17"]])
def test_a_stream_adds_up_to_the_answer(client: openai.OpenAI, stop: list[str] | None) -> None:
    fields: dict[str, Any] = {
        "model": "tiny",
        "messages": MESSAGES,
        "n": 3,
        "max_tokens": 20,
        "seed": 3,
        "logprobs": True,
        "top_logprobs": 1,
        "stop": stop,
        "extra_body": {"return_token_ids": True},
    }
    whole = client.chat.completions.create(**fields)
    chunks = list(client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    assert [chunk.choices[0].delta.role for chunk in chunks[:3]] == ["assistant"] * 3
    assert all(chunk.prompt_token_ids == PROMPT for chunk in chunks[:3])
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    for choice in whole.choices:
        mine = [chunk.choices[0] for chunk in chunks[3:-1] if chunk.choices[0].index == choice.index]
        assert "".join(c.delta.content for c in mine) == choice.message.content
        assert [t for c in mine for t in c.token_ids] == choice.token_ids
        assert [e.token for c in mine for e in c.logprobs.content] == [e.token for e in choice.logprobs.content]
        assert [c.finish_reason for c in mine] == [None] * (len(mine) - 1) + [choice.finish_reason]
        assert mine[-1].stop_reason == choice.stop_reason


def test_chat_prompt_has_tools_and_earlier_calls(chat: Callable[..., httpx.Response]) -> None:
    tools = [{"type": "function", "function": {"name": "Reflect", "parameters": {}}}]
    reflect = build_tokenizer().convert_tokens_to_ids("Reflect")
    assert chat(tools=tools, return_token_ids=True).json()["prompt_token_ids"] == [reflect, *PROMPT]
    assert chat(tools=tools, tool_choice="none", return_token_ids=True).json()["prompt_token_ids"] == PROMPT
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    parts = [{"type": "text", "text": "equals 17"}]
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "5"},
    ]
    assert chat(messages=messages, return_token_ids=True).json()["prompt_token_ids"] == [
        4,
        17,
        41,
        2,
        5,
        2,
        6,
        29,
        2,
        5,
    ]


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"messages": [{"content": "hi"}]}, "messages", "messages.0.role: every message needs one"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "only text is understood"),
        ({"messages": [{"role": "user", "content": "3 " * 300}]}, "messages", "your prompt contains 303 tokens"),
        ({"max_tokens": 257}, "max_tokens", "max_tokens=257 cannot be greater than max_model_len=256"),
        ({"top_logprobs": 1}, "top_logprobs", "`logprobs` must be set to true"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "when `stream=True`"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template", "the model's own template is used"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"tool_choice": "required"}, "tool_choice", "not supported"),
        ({"n": 2000}, "n", "less than or equal to 1024"),
    ],
)  # fmt: skip
def test_refusals_are_openai_errors(
    chat: Callable[..., httpx.Response], fields: dict[str, Any], param: str, message: str
) -> None:
    response = chat(**fields)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["type"]) == (400, 400, "BadRequestError")
    assert error["param"] == param
    assert message in error["message"]


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="The model `other` does not exist"):
        client.chat.completions.create(model="other", messages=MESSAGES)


class TestLeaving:
    BODY: ClassVar[dict[str, Any]] = {"messages": MESSAGES, "n": 256, "ignore_eos": True}
    """Many seconds of work."""

    def assert_idle_soon(self, http: httpx.Client) -> None:
        assert wait_until(lambda: http.get("/load").json() == {"server_load": 0}, timeout_s=60)

    def test_a_client_that_leaves_takes_its_work_with_it(self, http: httpx.Client) -> None:
        with pytest.raises(httpx.ReadTimeout):
            http.post("/v1/chat/completions", json=self.BODY, timeout=0.3)
        self.assert_idle_soon(http)

    def test_a_stream_that_is_closed_ends(self, http: httpx.Client) -> None:
        with http.stream("POST", "/v1/chat/completions", json={**self.BODY, "stream": True}) as response:
            next(response.iter_lines())
        self.assert_idle_soon(http)


def test_requests_at_the_same_time_get_their_own_answers(server: Any, checkpoint: Path) -> None:
    model = tiny.reference(checkpoint)
    expected = [tiny.greedy(model, prompt, 10)[0] for prompt in tiny.PROMPTS]

    async def ask() -> list[list[int]]:
        async with httpx.AsyncClient(base_url=server.base_url, timeout=60) as http:
            body = {"max_tokens": 10, "temperature": 0, "return_token_ids": True, "ignore_eos": True}
            answers = await asyncio.gather(
                *(http.post("/completions", json={**body, "prompt": prompt}) for prompt in tiny.PROMPTS * 8)
            )
        return [orjson.loads(answer.content)["choices"][0]["token_ids"] for answer in answers]

    assert asyncio.run(ask()) == expected * 8


async def test_a_client_that_leaves_before_its_request_is_read_is_no_error(served: ServedModel) -> None:
    app, sent = create_app(Engine(served)), []
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [], "query_string": b""}

    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    assert sent[0]["status"] == 499
