from __future__ import annotations

from typing import Any

import orjson
import pytest

from r3agent.serve.errors import APIError
from r3agent.serve.http.protocol import NEUTRAL, ChatCompletionRequest, CompletionRequest, parse

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


def refused(kind: type[ChatCompletionRequest] | type[CompletionRequest], body: bytes | dict[str, Any]) -> APIError:
    with pytest.raises(APIError) as error:
        parse(kind, body if isinstance(body, bytes) else orjson.dumps(body))
    assert error.value.status == 400
    return error.value


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("messages", [], "messages = []: List should have at least 1 item"),
        ("messages", None, "messages = None: Input should be a valid list"),
        ("n", 0, "n = 0: Input should be greater than or equal to 1"),
        ("max_tokens", 0, "max_tokens = 0: Input should be greater than or equal to 1"),
        ("max_completion_tokens", -1, "max_completion_tokens = -1"),
        ("temperature", 2.5, "temperature = 2.5: Input should be less than or equal to 2"),
        ("temperature", -0.1, "temperature = -0.1"),
        ("temperature", "hot", "temperature = 'hot': Input should be a valid number"),
        ("top_p", 0, "top_p = 0: Input should be greater than 0"),
        ("top_p", 1.5, "top_p = 1.5"),
        ("top_logprobs", 21, "top_logprobs = 21: Input should be less than or equal to 20"),
        ("seed", 2**63, "seed = 9223372036854775808"),
        ("stop", [""], "stop.0 = '': String should have at least 1 character"),
        ("stop", list("abcde"), "stop = ['a', 'b', 'c', 'd', 'e']: Value should have at most 4 items"),
        ("tools", [], "tools = []"),
    ],
)
def test_a_field_out_of_range_is_named_with_its_value_and_limit(field: str, value: Any, message: str) -> None:
    error = refused(ChatCompletionRequest, {**CHAT, field: value})
    assert error.param == field
    assert message in str(error)


@pytest.mark.parametrize("field", sorted(NEUTRAL))
def test_parse_refuses_fields_that_are_not_neutral(field: str) -> None:
    error = refused(ChatCompletionRequest, {**CHAT, field: "something"})
    assert error.param == field
    assert "would change the result" in str(error)
    for neutral in NEUTRAL[field]:
        parse(ChatCompletionRequest, orjson.dumps({**CHAT, field: neutral}))


def test_unknown_fields_and_nulls_are_taken_as_left_out() -> None:
    nulls = dict.fromkeys(["n", "temperature", "top_p", "seed", "stop", "stream", "logprobs", "top_logprobs", "tools"])
    request = parse(ChatCompletionRequest, orjson.dumps({**CHAT, **nulls, "user": "me", "metadata": {}}))
    assert (request.n, request.temperature, request.top_p, request.stop, request.stream) == (1, 1.0, 1.0, [], False)


def test_one_stop_string_is_a_list_of_one() -> None:
    assert parse(ChatCompletionRequest, orjson.dumps({**CHAT, "stop": "END"})).stop == ["END"]


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"text"', b"\xff"])
def test_what_is_not_a_json_object_is_refused(body: bytes) -> None:
    refused(ChatCompletionRequest, body)


@pytest.mark.parametrize("prompt", [[], "", [[1, 2]], ["a", "b"], [-1], None, [1.5]])
def test_prompts_are_one_list_of_token_ids_or_one_text(prompt: Any) -> None:
    assert refused(CompletionRequest, {"prompt": prompt}).param == "prompt"


def test_errors_do_not_repeat_a_long_value() -> None:
    assert len(str(refused(ChatCompletionRequest, {**CHAT, "temperature": "x" * 10_000}))) < 300


def test_parse_logs_a_field_that_may_be_misspelt(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        parse(ChatCompletionRequest, orjson.dumps({**CHAT, "temprature": 0.5, "user": "ada"}))
    assert caplog.messages == ["request field 'temprature' is unknown, and ignored; did you mean 'temperature'?"]
