"""Faults of endpoints: a `Fault` replaces an answer, an `Edit` corrupts a healthy one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Json: TypeAlias = dict[str, Any]

Edit: TypeAlias = Callable[[Json], None]
"""Function that changes the JSON of a chat completion in place."""


@dataclass(frozen=True)
class Fault:
    """Response to one request in place of a completion."""

    status: int = 200
    body: str = ""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    kind: Literal["answer", "drop", "hang"] = "answer"
    """`drop` closes the connection without an answer, `hang` waits until the client leaves."""


DROPPED = Fault(kind="drop")
HANG = Fault(kind="hang")
HTML_PAGE = Fault(200, "<!doctype html><title>Sign in</title>", "text/html")
MALFORMED_JSON = Fault(200, '{"choices": [')
PROMPT_TOO_LONG = Fault(400, '{"error": {"message": "maximum context length is 64 tokens, the prompt has 70"}}')
SERVER_ERROR = Fault(500, '{"error": {"message": "out of memory"}}')


def rate_limited(retry_after_s: float) -> Fault:
    """Make a 429 response with a Retry-After header."""
    return Fault(429, '{"error": {"message": "slow down"}}', headers={"Retry-After": str(retry_after_s)})


def miscount(answer: Json) -> None:
    """Drop a token id and its logprob, if there are any, as vLLM's streaming tool parsers do."""
    choice = answer["choices"][0]
    for tokens in (choice.get("token_ids"), (choice.get("logprobs") or {}).get("content")):
        if tokens:
            tokens.pop()
