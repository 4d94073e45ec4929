"""Errors of servers of every kind, and what they become."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from r3agent.errors import (
    AccessError,
    ContentFilterError,
    ContextLengthError,
    EndpointError,
    PolicyError,
    ProtocolError,
    RequestError,
)
from r3agent.http.errors import NO_KEY, ServerError, no_answer, policy_error, read_error, redact_key

MISSING = "The model `m` does not exist."


def error_of(body: Any, status: int = 400, **headers: str) -> ServerError:
    content = body if isinstance(body, str) else json.dumps(body)
    request = httpx.Request("POST", "http://h/v1", headers={"Authorization": "Bearer sk-1"})
    return read_error(httpx.Response(status, text=content, headers=headers, request=request))


@pytest.mark.parametrize(
    ("body", "message", "code", "param"),
    [
        ({"error": {"message": MISSING, "code": 404, "param": "model"}}, MISSING, "404", "model"),
        ({"error": {"message": MISSING, "type": "x"}}, MISSING, None, None),
        ({"error": MISSING}, MISSING, None, None),
        ([{"error": {"message": MISSING, "code": 400}}], MISSING, "400", None),
        ({"object": "error", "message": MISSING, "code": 404, "param": None}, MISSING, "404", None),
        ({"message": MISSING}, MISSING, None, None),
        ({"detail": MISSING}, MISSING, None, None),
        (
            {"detail": [{"loc": ["body", "logprobs"], "msg": "Extra inputs"}, {"loc": ["body", "n"], "msg": "No"}]},
            "body.logprobs: Extra inputs; body.n: No",
            None,
            "logprobs n",
        ),
        ("<html>\n  <h1>Bad</h1>\n</html>", "<html> <h1>Bad</h1> </html>", None, None),
        ("", "Bad Request", None, None),
        ({}, "{}", None, None),
        ({"error": {"message": None}}, "{'message': None}", None, None),
        (5, "5", None, None),
        ({"error": {"message": "Bearer sk-1 is wrong"}}, "Bearer [the API key] is wrong", None, None),
    ],
)
def test_read_error(body: Any, message: str, code: str | None, param: str | None) -> None:
    error = error_of(body)
    assert (error.message, error.code, error.param) == (message, code, param)


def test_read_error_of_a_redirect() -> None:
    error = error_of("", 302, location="https://me:open-sesame@host/login?user=me@home")
    assert error.message == "redirects to https://host/login"


def test_redact_key_leaves_the_stand_in_for_no_key() -> None:
    assert redact_key("queue is EMPTY", NO_KEY) == "queue is EMPTY"


def test_no_answer_is_without_the_key() -> None:
    request = httpx.Request("POST", "http://h/v1", headers={"Authorization": "Bearer sk-1"})
    error = httpx.RemoteProtocolError("illegal status line: sk-1", request=request)
    assert no_answer(error, 5) == "illegal status line: [the API key]"


@pytest.mark.parametrize(
    ("body", "status", "has_no_route"),
    [
        ({"detail": "Not Found"}, 404, True),
        ("", 405, True),
        ({"error": {"message": MISSING}}, 404, False),
        ({"object": "error", "message": MISSING}, 404, False),
        ({"detail": "bad"}, 422, False),
    ],
)
def test_has_no_route(body: Any, status: int, has_no_route: bool) -> None:
    assert error_of(body, status).has_no_route is has_no_route


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (302, ProtocolError),
        (402, AccessError),
        (400, RequestError),
        (401, AccessError),
        (403, AccessError),
        (404, AccessError),
        (405, AccessError),
        (408, EndpointError),
        (409, EndpointError),
        (422, RequestError),
        (429, EndpointError),
        (500, EndpointError),
        (503, EndpointError),
    ],
)
def test_policy_error(status: int, kind: type[PolicyError]) -> None:
    error = policy_error(error_of({"error": "no"}, status), where="http://h: ", tries=" (tried 2 times)")
    assert type(error) is kind
    assert str(error).startswith(f"http://h: {status} no")
    assert ("tried 2 times" in str(error)) is (kind is EndpointError)


QUOTA = "You exceeded your current quota, please check your plan and billing details."


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (429, {"message": QUOTA, "type": "insufficient_quota", "code": "insufficient_quota"}),  # OpenAI
        (429, {"message": f"litellm.RateLimitError: {QUOTA}", "type": "insufficient_quota", "code": "429"}),
        (400, {"message": "Budget has been exceeded! Current cost: 9", "type": "budget_exceeded", "code": "400"}),
        (400, {"message": "Billing hard limit has been reached", "code": "billing_hard_limit_reached"}),
        (400, {"message": "Your credit balance is too low to access the API.", "type": "invalid_request_error"}),
        (402, {"message": "Insufficient Balance", "code": "invalid_request_error"}),  # DeepSeek
        (429, {"message": "Your account is suspended", "type": "exceeded_current_quota_error"}),  # Moonshot
        (200, {"message": "Insufficient credits", "code": 402}),  # OpenRouter
    ],
)
def test_policy_error_of_an_account_without_credit(status: int, error: dict[str, Any]) -> None:
    refused = error_of({"error": error}, status)
    assert not refused.is_transient
    found = policy_error(refused)
    assert isinstance(found, AccessError)
    assert str(found).endswith("; the account or key has no credit left")


def test_a_quota_of_a_minute_is_transient() -> None:
    limited = {"error": {"code": 429, "message": f"{QUOTA} Please retry in 38.5s.", "status": "RESOURCE_EXHAUSTED"}}
    assert error_of(limited, 429).is_transient


@pytest.mark.parametrize(
    ("headers", "body", "delay_s"),
    [
        ({"retry-after": "7"}, {}, 7.0),
        ({"retry-after-ms": "286.5", "retry-after": "1"}, {}, 0.2865),
        ({"retry-after-ms": "soon", "retry-after": "1"}, {}, 1.0),
        ({"retry-after": "0"}, {}, None),
        ({"retry-after": "0"}, {"retry_after": 30}, 30.0),  # Cloudflare
        ({}, {"error": {"details": [{"retryDelay": "38.5s"}]}}, 38.5),  # Gemini
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, {}, None),
        ({"retry-after": "86400", "x-ratelimit-reset-requests": "1s"}, {}, 86400.0),
        ({"x-ratelimit-reset-requests": "1s"}, {}, 1.0),
    ],
)
def test_delay_that_a_server_asks_for(headers: dict[str, str], body: Any, delay_s: float | None) -> None:
    assert error_of(body, 429, **headers).wait_s == delay_s


def test_only_a_limited_rate_waits_for_its_reset() -> None:
    assert error_of({}, 503, **{"x-ratelimit-reset-requests": "1s"}).wait_s is None


def test_a_delay_that_nobody_waits_for_says_when_to_go_on() -> None:
    error = error_of({"error": "slow down"}, 429, **{"retry-after": "Sun Nov  6 08:49:37 2094"})
    assert (error.is_transient, error.asks_too_long) == (True, True)
    assert isinstance(policy_error(error), EndpointError)
    says = (
        r"slow down; it asks to wait \d+ s, and a request waits at most 300 s: run it again after 2094-11-0\d \d\d:\d\d"
    )
    assert re.search(says, str(policy_error(error)))
    assert "300" not in str(policy_error(error_of({}, 429, **{"retry-after": "300"})))


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"error": {"message": "no", "code": "context_length_exceeded"}}),  # OpenAI, Groq
        (400, {"error": {"message": "Your input exceeds the context window of this model."}}),  # OpenAI's newest
        (
            400,
            {"message": "This model's maximum context length is 64 tokens. However, your prompt contains 70"},
        ),  # vLLM
        (400, {"message": "The decoder prompt (length 70) is longer than the maximum model length of 64."}),  # vLLM
        (400, {"error": {"message": "Input length (70) exceeds model's maximum context length (64)."}}),  # vLLM
        (400, {"error": {"message": "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)"}}),  # vLLM
        (400, {"message": "The input (70 tokens) is longer than the model's context length (64 tokens)."}),  # SGLang
        (400, {"message": "Requested token count exceeds the model's maximum context length of 64."}),  # SGLang
        (422, {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 64."}),  # TGI
        (422, {"error": "Input validation error: `inputs` must have less than 64 tokens. Given: 70"}),  # TGI
        (400, {"error": {"code": 400, "message": "request (70 tokens) exceeds the available context size (64)"}}),
        (500, {"error": {"code": 500, "message": "Context size has been exceeded.", "type": "server_error"}}),
        (400, {"error": {"message": "prompt is too long: 70 tokens > 64 maximum"}}),  # Anthropic
        (400, {"error": {"message": "input length and `max_tokens` exceed context limit: 60 + 10 > 64"}}),
        (400, [{"error": {"message": "The input token count (70) exceeds the maximum number of tokens"}}]),  # Gemini
        (413, {"error": {"code": "tokens_limit_reached", "message": "Request body too large"}}),  # GitHub
    ],
)
def test_policy_error_of_a_conversation_too_long(status: int, body: Any) -> None:
    error = error_of(body, status)
    assert not error.is_transient
    found = policy_error(error)
    assert type(found) is ContextLengthError
    assert str(found).endswith("; shorten the conversation or lower sampling.max_tokens")


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"error": {"code": "content_filter", "message": "triggering Azure OpenAI's content management policy"}}),
        (403, {"error": {"message": "m requires moderation. Your input was flagged for 'violence'."}}),  # OpenRouter
        (400, {"error": {"message": "rejected as a result of our safety system", "code": "moderation_blocked"}}),
    ],
)
def test_policy_error_of_a_filtered_conversation(status: int, body: Any) -> None:
    assert type(policy_error(error_of(body, status))) is ContentFilterError


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (400, "unknown field `top_k`", RequestError),
        (400, "max_tokens must be at least 1", RequestError),
        (401, "the context length of this key is over", AccessError),
        (429, "Request too large on tokens per min: Limit 10, Requested 15", EndpointError),
        (500, "CUDA out of memory", EndpointError),
        (503, "context length: the server is loading", EndpointError),
    ],
)
def test_policy_error_of_another_refusal(status: int, message: str, kind: type[PolicyError]) -> None:
    assert type(policy_error(error_of({"error": message}, status))) is kind


def test_policy_error_keeps_the_whole_refusal() -> None:
    refusal = {"error": {"message": "x" * 600 + " return_token_ids is unknown", "param": "logprobs"}}
    error = policy_error(error_of(refusal))
    assert isinstance(error, RequestError)
    assert len(str(error)) < 600
    assert error.refusal.endswith("return_token_ids is unknown")
    assert error.param == "logprobs"
