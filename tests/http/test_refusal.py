"""Refusals of fields as servers spell them, and the fields that they refuse."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from r3agent.errors import AccessError, RequestError
from r3agent.http.errors import policy_error, read_error
from r3agent.http.refusal import refused_fields

BODY = {
    "model": "m",
    "messages": [],
    "tools": [],
    "temperature": 1.0,
    "top_p": 1.0,
    "max_tokens": 9,
    "seed": 3,
    "stop": ["x"],
    "logprobs": True,
    "return_token_ids": True,
    "n": 2,
    "top_k": -1,
    "min_p": 0.0,
    "frequency_penalty": 0.0,
    "stream_options": {},
    "response_format": {},
    "tool_choice": "auto",
}


def refused(body: Any, status: int = 400) -> set[str]:
    """Fields of `BODY` that a response refuses."""
    request = httpx.Request("POST", "http://h/v1/chat/completions", json=BODY)
    content = {"text": body} if isinstance(body, str) else {"json": body}
    error = read_error(httpx.Response(status, **content, request=request))
    return refused_fields(error.status, error.message, BODY, param=error.param)


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        ("Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead.", "max_tokens"),
        (
            "`temperature` and `top_p` cannot both be specified for this model. Please use only one.",
            "temperature top_p",
        ),
        ("temperature and top_p cannot both be specified for this model", "temperature top_p"),
        ("Unsupported value: 'temperature' does not support 0.7. Only the default (1) is supported.", "temperature"),
        ("`temperature` is deprecated for this model.", "temperature"),
        ("Unrecognized request arguments supplied: min_p, top_k", "min_p top_k"),
        ("Unrecognized request argument supplied: stream_options", "stream_options"),
        ('Invalid JSON payload received. Unknown name "topK": Cannot find field.', "top_k"),
        ('Unknown name "maxOutputTokens" at generation_config', "max_tokens"),
        ("Top-k is unsupported", "top_k"),
        ("candidateCount must be 1", "n"),
        ("n > 1 is not supported", "n"),
        ("Log probabilities are not available", "logprobs"),
        ("Unable to submit request because Logprobs is not supported", "logprobs"),
        ("This model does not support response format `json_schema`", "response_format"),
        ("stopSequences are not supported", "stop"),
        ("unknown field `top_k`, expected one of `messages`, `temperature`, `n`", "top_k"),
        ("property 'return_token_ids' is unsupported, did you mean 'n'?", "return_token_ids"),
        ("Unsupported parameter: seed. Supported parameters: temperature, top_p, stop", "seed"),
        ("ollama_chat does not support parameters: ['logprobs'], model=x. Set `litellm.drop_params=True`", "logprobs"),
        ("Additional properties are not allowed ('min_p', 'top_k' were unexpected)", "min_p top_k"),
        ("[{'loc': ('body', 'min_p'), 'msg': 'Extra inputs', 'input': {'temperature': 1}}]", "min_p"),
        ("tool_choice is only allowed with tools", "tool_choice"),
        ("x " * 300 + "Extra inputs are not permitted: return_token_ids", "return_token_ids"),
        ("messages: at least one message is required", ""),
        ("don't know\\n what this is", ""),
    ],
)
def test_refused_fields_in_every_wording(message: str, fields: str) -> None:
    assert refused({"error": {"message": message}}) == {*fields.split()}


UNKNOWN = "Unknown parameter: 'min_p'."
LOC = {"type": "extra_forbidden", "loc": ["body", "min_p"], "msg": "Extra inputs are not permitted", "input": BODY}


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": UNKNOWN, "param": None}},
        {"error": {"message": "Unknown parameter.", "param": "min_p"}},
        {"error": {"message": "Unknown parameter; temperature is fine", "param": "body.min_p"}},
        {"error": UNKNOWN},
        [{"error": {"code": 400, "message": UNKNOWN, "status": "INVALID_ARGUMENT"}}],
        {"object": "error", "message": UNKNOWN, "code": 400},
        {"object": "error", "message": {"detail": [LOC]}},
        {"detail": UNKNOWN},
        {"detail": [LOC]},
        {"detail": LOC},
        {"error": {"code": "Invalid input", "message": "invalid input error", "details": [LOC]}},
        {
            "error": {
                "message": "Provider returned error",
                "code": 400,
                "metadata": {"raw": json.dumps({"error": UNKNOWN})},
            }
        },
        {"error": {"message": "Provider returned error", "metadata": {"raw": UNKNOWN}}},
        {"type": "error", "error": {"type": "invalid_request_error", "message": UNKNOWN}},
        {"timestamp": 1, "status": 400, "error": "Bad Request", "message": UNKNOWN},
        {"success": False, "errors": [{"code": 1, "message": UNKNOWN}]},
        {"title": "Bad Request", "status": 400, "detail": UNKNOWN},
        {"error": {"min_p": ["not supported"]}},
        {"error": {"message": "additional properties", "details": [{"params": {"additionalProperty": "min_p"}}]}},
        UNKNOWN,
    ],
)
@pytest.mark.parametrize("status", [400, 422])
def test_refused_fields_in_every_shape(body: Any, status: int) -> None:
    assert refused(body, status) == {"min_p"}


@pytest.mark.parametrize("status", [403, 404, 405, 500, 501])
def test_refused_fields_by_another_status_if_it_says_so(status: int) -> None:
    assert refused({"error": {"message": "You are not allowed to request logprobs"}}, status) == {"logprobs"}
    assert refused({"error": {"message": "logprobs"}}, status) == set()
    assert refused({"error": {"message": "logprobs are not supported"}}, 429) == set()


@pytest.mark.parametrize(("status", "kind"), [(403, RequestError), (404, RequestError), (500, RequestError)])
def test_policy_error_of_a_refused_field_is_no_wrong_key(status: int, kind: type[Exception]) -> None:
    request = httpx.Request("POST", "http://h/v1", json=BODY)
    response = httpx.Response(status, json={"error": {"message": "logprobs are not allowed"}}, request=request)
    error = read_error(response)
    assert not error.is_transient
    assert type(policy_error(error)) is kind
    plain = httpx.Response(403, json={"error": {"message": "no access"}}, request=request)
    assert type(policy_error(read_error(plain))) is AccessError
