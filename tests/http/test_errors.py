"""Errors of servers of every kind, and what they become."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from r3agent.errors import AccessError, EndpointError, PolicyError, ProtocolError, RequestError
from r3agent.http.errors import NO_KEY, ServerError, no_answer, policy_error, read_error, redact_key, refused_field

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
            "logprobs",
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
        (200, ProtocolError),
        (302, ProtocolError),
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


def test_policy_error_keeps_the_whole_refusal() -> None:
    refusal = {"error": {"message": "x" * 600 + " return_token_ids is unknown", "param": "logprobs"}}
    error = policy_error(error_of(refusal))
    assert isinstance(error, RequestError)
    assert len(str(error)) < 600
    assert refused_field(error.refusal, ["return_token_ids"]) == "return_token_ids"
    assert refused_field(error.refusal, ["n", "logprobs"]) == "logprobs"
