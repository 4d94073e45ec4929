"""Answers that are not of the letter: what is recorded of each, streamed or not, and what goes back to the server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from r3agent.errors import EndpointError, ProtocolError
from r3agent.policy import OpenAIPolicy
from r3agent.records.trajectory import Generation
from r3agent.testing import Fault, ScriptedEndpoint

MESSAGES = [{"role": "user", "content": "?"}]
END: dict[str, Any] = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
USAGE = {"prompt_tokens": 3, "completion_tokens": 4}
SIGNED = {"extra_content": {"google": {"thought_signature": "abc"}}}


async def sample(body: str | bytes, *, streamed: bool = False, content_type: str = "application/json") -> Generation:
    pieces: list[str] = []

    def on_delta(choice: int, text: str) -> None:
        pieces.append(text)

    text = body.decode("latin-1") if isinstance(body, bytes) else body
    with ScriptedEndpoint(faults=[Fault(body=text, content_type=content_type)]) as endpoint:
        async with OpenAIPolicy(endpoint.url, endpoint.model, max_tries=1) as policy:
            [generation] = await policy.sample(MESSAGES, on_delta=on_delta if streamed else None)
    assert not streamed or "".join(pieces) == generation.text
    return generation


def whole(message: Any, **choice: Any) -> str:
    return json.dumps({"choices": [{"message": message, "finish_reason": "stop", **choice}]})


def stream(*events: Any, done: bool = True, end: str = "\n\n") -> str:
    lines = [event if isinstance(event, str) else f"data: {json.dumps(event)}{end}" for event in events]
    return "".join(lines) + ("data: [DONE]\n\n" if done else "")


def delta(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def call(id_: Any, arguments: Any, name: Any = "f", **more: Any) -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}, **more}


TEXTS: dict[str, tuple[Any, str, str | None]] = {
    "null": ({"content": None}, "", None),
    "missing": ({"role": "assistant"}, "", None),
    "parts": ({"content": [{"type": "text", "text": "4"}, "2"]}, "42", None),
    "one part": ({"content": {"type": "output_text", "text": "42"}}, "42", None),
    "an object": ({"content": {"answer": 42}}, '{"answer": 42}', None),
    "a number": ({"content": 42}, "42", None),
    "Mistral's thinking": (
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"text": "42"}]},
        "42",
        "hm",
    ),
    "Anthropic's thinking": (
        {"content": [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "42"}]},
        "42",
        "hm",
    ),
    "reasoning as parts": ({"content": "42", "reasoning_content": [{"type": "text", "text": "hm"}]}, "42", "hm"),
    "reasoning null": ({"content": "42", "reasoning": None, "reasoning_content": ""}, "42", None),
    "refusal": ({"content": None, "refusal": "I cannot."}, "I cannot.", None),
    "a split pair": ({"content": "\ud83d\ude00"}, "\U0001f600", None),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("streamed", [False, True])
async def test_the_text_of_any_content_is_recorded(name: str, streamed: bool) -> None:
    message, text, reasoning = TEXTS[name]
    body = stream(delta(**message), END) if streamed else whole(message)
    generation = await sample(body, streamed=streamed)
    assert (generation.text, generation.reasoning) == (text, reasoning)
    content = message.get("content")
    is_signed = isinstance(content, list) and reasoning is not None
    assert generation.turn["content"] == (content if is_signed else text)
    assert "reasoning" not in generation.turn or not is_signed


CALLS: dict[str, tuple[Any, list[tuple[str, str]]]] = {
    "object": (call("1", {"a": 1}), [("f", '{"a": 1}')]),
    "none": (call("1", None), [("f", "{}")]),
    "empty": (call("1", ""), [("f", "{}")]),
    "bad JSON stays": (call("1", '{"a": 1}}'), [("f", '{"a": 1}}')]),
    "empty ids": ([call("", "{}"), call("", "{}")], [("f", "{}")] * 2),
    "repeated ids": ([call("1", '{"a": 1}'), call("1", '{"a": 2}')], [("f", '{"a": 1}'), ("f", '{"a": 2}')]),
    "no id, no type": ({"function": {"name": "f", "arguments": "{}"}}, [("f", "{}")]),
    "a number as id": (call(7, "{}"), [("f", "{}")]),
    "no function": ({"id": "", "type": "function"}, [("", "{}")]),
    "no name": (call("1", '{"a": 1}', None), [("", '{"a": 1}')]),
    "no object around": ({"id": "1", "name": "f", "arguments": {"a": 1}}, [("f", '{"a": 1}')]),
    "null": ([], []),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("streamed", [False, True])
async def test_tool_calls_are_recorded_as_a_strict_server_takes_them(name: str, streamed: bool) -> None:
    calls, expected = CALLS[name]
    calls = [calls] if isinstance(calls, dict) else calls or None
    indexed = calls and [{**one, "index": i} for i, one in enumerate(calls)]
    body = stream(delta(tool_calls=indexed), END) if streamed else whole({"content": None, "tool_calls": calls})
    generation = await sample(body, streamed=streamed)
    assert [(c["function"]["name"], c["function"]["arguments"]) for c in generation.tool_calls] == expected
    ids = [c["id"] for c in generation.tool_calls]
    assert all(isinstance(id_, str) and id_ for id_ in ids)
    assert len({*ids}) == len(ids)
    assert {c["type"] for c in generation.tool_calls} <= {"function"}
    assert not any("index" in c for c in generation.tool_calls)
    for sent in generation.turn.get("tool_calls", ()):
        assert sent["function"]["name"]
        assert isinstance(json.loads(sent["function"]["arguments"]), dict)


async def test_a_legacy_function_call_is_a_tool_call() -> None:
    legacy = {"name": "f", "arguments": '{"a": 1}'}
    parts = [delta(function_call={"name": "f", "arguments": '{"a"'}), delta(function_call={"arguments": ": 1}"}), END]
    for body, streamed in ((whole({"content": None, "function_call": legacy}), False), (stream(*parts), True)):
        generation = await sample(body, streamed=streamed)
        assert [c["function"] for c in generation.tool_calls] == [legacy]


def part(index: Any = ..., id_: Any = ..., name: Any = ..., arguments: Any = ...) -> dict[str, Any]:
    """Make a part of a tool call that lacks what is not given."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not ...}
    given = {key: value for key, value in (("index", index), ("id", id_)) if value is not ...}
    return {**given, **({"function": function} if function else {})}


ONE, TWO = ("f", '{"a": 1}'), ("g", '{"a": 2}')
PARTS: dict[str, tuple[list[dict[str, Any]], list[tuple[str, str]]]] = {
    "as OpenAI": ([part(0, "1", "f", ""), part(0, arguments='{"a"'), part(0, arguments=": 1}")], [ONE]),
    "name in every part": ([part(0, "1", "f", '{"a"'), part(0, "1", "f", ": 1}"), part(0, "1", "f", "")], [ONE]),
    "name in pieces": ([part(0, "1", "get_", ""), part(0, name="it", arguments="{}")], [("get_it", "{}")]),
    "an id in every part": ([part(0, "1", "f", '{"a"'), part(0, "2", "f", ": 1}")], [ONE]),
    "no index": ([part(id_="1", name="f", arguments='{"a"'), part(arguments=": 1}"), part(id_="2")], [ONE]),
    "index null": ([part(None, "1", *ONE), part(None, "2", *TWO)], [ONE, TWO]),
    "index used again": ([part(0, "1", *ONE), part(0, "2", *TWO)], [ONE, TWO]),
    "index used again, no ids": ([part(0, "", *ONE), part(0, "", *TWO)], [ONE, TWO]),
    "index used again, one id": ([part(0, "1", *ONE), part(0, "1", *TWO)], [ONE, TWO]),
    "index used again, no arguments": ([part(0, "1", "f", ""), part(0, "2", "g", "")], [("f", "{}"), ("g", "{}")]),
    "index from 1": ([part(1, "1", *ONE), part(2, "2", *TWO)], [ONE, TWO]),
    "index in mixed order": (
        [part(1, "2", "g", '{"a"'), part(0, "1", "f", '{"a"'), part(1, arguments=": 2}"), part(0, arguments=": 1}")],
        [TWO, ONE],
    ),
    "the whole call again": ([part(0, "1", *ONE), part(0, "1", *ONE)], [ONE]),
    "an object": ([part(0, "1", "f", {"a": 1})], [ONE]),
    "a placeholder first": ([part(0, "1", "f", "{}"), part(0, arguments='{"a": 1}')], [ONE]),
}


@pytest.mark.parametrize("given", [{}, {"index": 0}, {"index": 0, "id": ""}])
async def test_calls_of_one_delta_are_calls_though_they_are_the_same(given: dict[str, Any]) -> None:
    called = {**given, "function": {"name": "f", "arguments": "{}"}}
    generation = await sample(stream(delta(tool_calls=[called, called]), END), streamed=True)
    assert len(generation.tool_calls) == 2


@pytest.mark.parametrize("name", PARTS)
async def test_parts_of_tool_calls_are_put_together(name: str) -> None:
    parts, expected = PARTS[name]
    generation = await sample(stream(*(delta(tool_calls=[one]) for one in parts), END), streamed=True)
    assert [(c["function"]["name"], c["function"]["arguments"]) for c in generation.tool_calls] == expected


TEXT = delta(content="42")
STREAMS: dict[str, str] = {
    "usage without choices": stream(TEXT, END, {"usage": USAGE}),
    "usage with choices null": stream(TEXT, END, {"choices": None, "usage": USAGE}),
    "usage of Groq": stream(TEXT, {**END, "x_groq": {"usage": USAGE}}),
    "usage in the choice": stream(TEXT, {"choices": [{**END["choices"][0], "usage": USAGE}]}),
    "no index": stream({"choices": [{"delta": {"content": "42"}}]}, {"choices": [{"finish_reason": "stop"}]}),
    "a delta null": stream(TEXT, {"choices": [{"index": 0, "delta": None, "finish_reason": "stop"}]}),
    "a ping": stream({"type": "ping"}, TEXT, END),
    "comments": stream(": keep-alive\n\n", "event: message\n", TEXT, "retry: 3\n\n", END),
    "empty data": stream("data: \n\n", TEXT, "data:\n\n", END),
    "CRLF": stream(TEXT, END, end="\r\n\r\n"),
    "CR": stream(TEXT, END, end="\r\r"),
    "one line break": stream(TEXT, END, end="\n"),
    "a byte order mark": "\ufeff" + stream(TEXT, END),
    "no last line break": stream(TEXT, END, done=False).rstrip(),
    "a message for a delta": stream({"choices": [{"message": {"content": "42"}, "finish_reason": "stop"}]}),
    "messages for deltas": stream(
        {"choices": [{"message": {"content": "4"}}]},
        {"choices": [{"message": {"content": "2"}, "finish_reason": "stop"}]},
    ),
    "the whole message at the end": stream(
        delta(content="4"), delta(content="2"), {"choices": [{"message": {"content": "42"}, "finish_reason": "stop"}]}
    ),
    "a content of parts": stream(delta(content=[{"type": "text", "text": "4"}]), delta(content="2"), END),
    "words": stream("data: ping\n\n", TEXT, END, 'data: "[DONE]"\n\n'),
    "nulls": stream("data: null\n\n", {"choices": [None]}, delta(content="42", tool_calls=[None]), END),
    "a text for a delta": stream({"choices": [{"text": "42"}]}, {"choices": [{"text": "", "finish_reason": "stop"}]}),
    "no stream": whole({"content": "42"}),
    "no stream, in lines": json.dumps(json.loads(whole({"content": "42"})), indent=1),
}


@pytest.mark.parametrize("name", STREAMS)
async def test_an_event_need_not_be_of_the_letter(name: str) -> None:
    generation = await sample(STREAMS[name], streamed=True, content_type="text/event-stream")
    assert (generation.text, generation.finish_reason) == ("42", "stop")
    assert generation.completion_tokens == (4 if name.startswith("usage") else None)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (stream(TEXT, END), "42"),
        (f"[{whole({'content': '42'})}]", "42"),
        ('{"choices": [{"text": "42", "finish_reason": "stop"}]}', "42"),
        ('{"choices": [{"finish_reason": "length"}]}', ""),
        ('{"model": 7, "usage": [1], "choices": [{"message": {"content": "42"}, "token_ids": ["4"]}]}', "42"),
    ],
)
async def test_an_answer_may_be_wrapped_otherwise(body: str, text: str) -> None:
    assert (await sample(body)).text == text


async def test_a_surrogate_pair_may_be_split_over_two_events() -> None:
    events = [delta(content="a\ud83d"), delta(content="\ude00b"), END]
    assert (await sample(stream(*events), streamed=True)).text == "a\U0001f600b"
    alone = await sample(stream(delta(content="a\ud83d"), delta(content="b"), END), streamed=True)
    assert alone.text == "a\ufffdb"
    assert (alone.capability, "lone surrogate" in (alone.capability_note or "")) == ("eval-only", True)


SENT_BACK: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "a signature of a call": (
        [{"tool_calls": [{"index": 0, **call("1", "{}"), **SIGNED}]}],
        {"tool_calls": [{**call("1", "{}"), **SIGNED}]},
    ),
    "details of the reasoning": (
        [
            {"reasoning": "h", "reasoning_details": [{"type": "reasoning.text", "text": "h", "index": 0}]},
            {"reasoning": "m", "reasoning_details": [{"type": "reasoning.text", "text": "m", "index": 0}]},
            {"reasoning_details": [{"type": "reasoning.text", "signature": "s", "index": 0}]},
            {"reasoning_details": [{"type": "reasoning.encrypted", "data": "d", "index": 1}]},
        ],
        {
            "reasoning": "hm",
            "reasoning_details": [
                {"type": "reasoning.text", "text": "hm", "index": 0, "signature": "s"},
                {"type": "reasoning.encrypted", "data": "d", "index": 1},
            ],
        },
    ),
    "blocks of thinking": (
        [
            {"thinking_blocks": [{"type": "thinking", "thinking": "h"}]},
            {"thinking_blocks": [{"type": "thinking", "thinking": "m", "signature": "s"}]},
        ],
        {"thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "s"}]},
    ),
    "thinking as parts": (
        [
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "h"}]}]},
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "m"}]}]},
            {"content": "42"},
        ],
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
                {"type": "text", "text": "42"},
            ]
        },
    ),
    "details without an index": (
        [{"reasoning_details": [{"type": "reasoning.encrypted", "data": data, "id": data}]} for data in ("a", "b")],
        {"reasoning_details": [{"type": "reasoning.encrypted", "data": data, "id": data} for data in ("a", "b")]},
    ),
    "a field in each delta": (
        [{"content": "4", "tier": "x"}, {"content": "2", "tier": "x"}],
        {"content": "42", "tier": "x"},
    ),
    "a field of the message": ([{"content": "42", **SIGNED}], {"content": "42", **SIGNED}),
    "but no annotations, nor what is null": ([{"content": "42", "annotations": [1], "audio": None}], {"content": "42"}),
}


@pytest.mark.parametrize("name", SENT_BACK)
@pytest.mark.parametrize("streamed", [False, True])
async def test_what_a_server_wants_back_is_in_the_turn(name: str, streamed: bool) -> None:
    deltas, message = SENT_BACK[name]
    body = stream(*(delta(**one) for one in deltas), END) if streamed else whole(message)
    if not streamed and name.startswith("but"):
        body = whole(deltas[0])
    generation = await sample(body, streamed=streamed)
    assert generation.turn == {"role": "assistant", "content": "", **message}
    assert Generation.model_validate_json(generation.model_dump_json()) == generation
    assert ("extra" in generation.model_dump()) == bool(generation.extra)


LOGPROBS: dict[str, tuple[Any, str, str]] = {
    "good": ({"content": [{"logprob": -1}, {"logprob": -0.1}]}, "trainable-exact", ""),
    "infinite": ({"content": [{"logprob": float("-inf")}, {"logprob": -0.1}]}, "eval-only", "-inf"),
    "not a number": ({"content": [{"logprob": float("nan")}, {"logprob": -0.1}]}, "eval-only", "nan"),
    "null": ({"content": [{"logprob": None}, {"logprob": -0.1}]}, "eval-only", "None"),
    "vLLM's infinite": ({"content": [{"logprob": -9999.0}, {"logprob": -0.1}]}, "eval-only", "-9999.0"),
    "positive": ({"content": [{"logprob": 0.5}, {"logprob": -0.1}]}, "eval-only", "0.5"),
    "text": ({"content": [{"logprob": "-1"}, {"logprob": -0.1}]}, "eval-only", "'-1'"),
    "of old servers": ({"token_logprobs": [-1, -0.1], "tokens": ["4", "2"]}, "trainable-exact", ""),
    "a list": ([-1, -0.1], "trainable-exact", ""),
    "true": (True, "trainable-retokenised", "no logprobs"),
    "empty": ({}, "trainable-retokenised", "no logprobs"),
    "content null": ({"content": None}, "trainable-retokenised", "no logprobs"),
}


@pytest.mark.parametrize("name", LOGPROBS)
async def test_a_wrong_logprob_costs_the_training_not_the_answer(name: str) -> None:
    logprobs, capability, note = LOGPROBS[name]
    choice: dict[str, Any] = {"finish_reason": "stop", "logprobs": logprobs, "token_ids": [4, 2]}
    answer = {"prompt_token_ids": [1], "choices": [{**choice, "message": {"content": "42"}}]}
    for body, streamed in (
        (json.dumps(answer), False),
        (stream({**answer, "choices": [{**choice, "index": 0, "delta": {"content": "42"}}]}), True),
    ):
        if streamed and not isinstance(logprobs, dict):
            continue
        generation = await sample(body, streamed=streamed)
        assert (generation.text, generation.capability) == ("42", capability)
        assert note in (generation.capability_note or "")
        assert generation.logprobs == ((-1, -0.1) if capability == "trainable-exact" else None)


async def test_a_wrong_logprob_without_token_ids_is_only_noted() -> None:
    generation = await sample(whole({"content": "42"}, logprobs={"content": [{"logprob": None}]}))
    assert generation.capability == "trainable-retokenised"
    assert "None among the logprobs" in (generation.capability_note or "")


async def test_logprobs_of_fewer_tokens_are_left_out_without_a_prompt() -> None:
    generation = await sample(whole({"content": "42"}, token_ids=[1], logprobs={"content": [{"logprob": -1}] * 2}))
    assert (generation.text, generation.capability) == ("42", "trainable-retokenised")
    assert (generation.token_ids, generation.logprobs) == ((1,), None)


async def test_numbers_and_marks_that_are_not_JSON_are_read() -> None:
    body = "\ufeff \n" + whole({"content": "42"}).replace('"finish_reason"', '"timing": NaN, "finish_reason"')
    assert (await sample(body)).text == "42"


@pytest.mark.parametrize(
    "reason", ["content_filter", "SAFETY", "ContentFilter", "refusal", None, "", {"type": "length"}]
)
async def test_what_may_not_be_whole_is_never_trained_on(reason: Any) -> None:
    exact = {"token_ids": [4, 2], "logprobs": {"content": [{"logprob": -1}, {"logprob": -1}]}, "finish_reason": reason}
    body = json.dumps({"prompt_token_ids": [1], "choices": [{"message": {"content": "42"}, **exact}]})
    generation = await sample(body)
    assert generation.text == "42"
    assert (generation.capability == "eval-only") == (reason != {"type": "length"})
    assert generation.unfinished == ("length" if isinstance(reason, dict) else "content_filter" if reason else None)


@pytest.mark.parametrize(
    "reason",
    ["abort", "error", "Aborted", "insufficient_system_resource", "timeout", {"type": "abort", "message": "x"}],
)
async def test_what_the_server_broke_off_is_asked_for_again(reason: Any) -> None:
    broken = Fault(body=whole({"content": "4"}, finish_reason=reason))
    with ScriptedEndpoint("42", faults=[broken]) as endpoint:
        async with OpenAIPolicy(endpoint.url, endpoint.model) as policy:
            [generation] = await policy.sample(MESSAGES)
    assert generation.text == "42"
    with pytest.raises(EndpointError, match=reason if isinstance(reason, str) else "abort"):
        await sample(stream(TEXT, {"choices": [{"index": 0, "finish_reason": reason}]}), streamed=True)


@pytest.mark.parametrize("done", [True, False])
async def test_a_stream_without_a_finish_reason_was_broken_off(done: bool) -> None:
    with pytest.raises(EndpointError, match="ended without a finish reason"):
        await sample(stream(TEXT, done=done), streamed=True)
    with pytest.raises(EndpointError, match="ended without a finish reason"):
        await sample(stream(TEXT, done=False) + 'data: {"choices": [{"ind', streamed=True)


@pytest.mark.parametrize("count", [2**70, 1e300, -1, 0.5, True])
async def test_a_number_of_tokens_that_is_none_is_left_out(count: Any) -> None:
    usage = {"prompt_tokens": count, "completion_tokens": count, "prompt_tokens_details": {"cached_tokens": count}}
    body = {**json.loads(whole({"content": "42"}, token_ids=[2**70])), "usage": usage, "prompt_token_ids": [1]}
    generation = await sample(json.dumps(body))
    assert (generation.prompt_tokens, generation.completion_tokens, generation.cached_tokens) == (None, None, None)
    assert (generation.text, generation.token_ids, generation.capability) == ("42", None, "trainable-retokenised")


BIG = f'{{"choices": [{{"message": {{"content": "4"}}}}], "usage": {{"completion_tokens": {10**400}}}}}'


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "body", ["<html>Sign in</html>", '{"answer": 42}', "[1]", '{"choices": [{"no": 42}]}', "[" * 99_999, BIG]
)
async def test_an_error_quotes_what_came(body: str, streamed: bool) -> None:
    with pytest.raises((ProtocolError, EndpointError)) as error:
        await sample(body, streamed=streamed)
    is_left_out = streamed and body.startswith('{"choices"')
    assert is_left_out or body[:12] in str(error.value)


@pytest.mark.parametrize("text", ["42", "é\u2028", "\ud83d\ude00", "\ud800", ""])
@pytest.mark.parametrize("field", [{}, {"reasoning_content": "hm"}, {"tool_calls": [call("a", {})]}, {"more": [1]}])
async def test_an_exact_answer_is_as_validation_leaves_it(text: str, field: dict[str, Any]) -> None:
    exact = {"token_ids": [1, 2], "logprobs": {"content": [{"logprob": -0.5}, {"logprob": 0.0}]}}
    body = json.loads(whole({"content": text, **field}, **exact)) | {"prompt_token_ids": [3], "usage": USAGE}
    generation = await sample(json.dumps({**body, "usage": {**USAGE, "completion_tokens": 2}}))
    assert generation.capability == "trainable-exact"
    validated = Generation.model_validate(dict(generation))
    assert generation == validated
    assert repr(generation) == repr(validated)
