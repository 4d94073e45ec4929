"""Faults of endpoints: a `Fault` replaces an answer or spoils its way, an `Edit` corrupts a healthy one."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from r3agent._util.messages import did_you_mean
from r3agent.errors import ConfigError
from r3agent.testing.tokens import encode, sampled_text

Json: TypeAlias = dict[str, Any]

Edit: TypeAlias = Callable[[Json], object]
"""Function that changes the JSON of a chat completion in place."""


@dataclass(frozen=True)
class Fault:
    """Response to one request."""

    status: int = 200
    body: str | None = ""
    """Content; `None` is the healthy answer, as whole or streamed as it was asked for."""
    content_type: str = ""
    """Default: that of the content."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    kind: Literal["answer", "drop", "hang", "cut", "trickle", "truncate"] = "answer"
    """`drop` closes the connection without an answer, `cut` in the middle of one; `truncate` sends half a content as if
    it were all, `trickle` sends one byte every `TRICKLE_S`, and `hang` waits until the client leaves."""
    edit: Edit = lambda answer: None
    """Change of a healthy answer."""


TRICKLE_S = 0.02

DROPPED = Fault(kind="drop")
HANG = Fault(kind="hang")
HTML_PAGE = Fault(200, "<!doctype html><title>Sign in</title>", "text/html")
MALFORMED_JSON = Fault(200, '{"choices": [')
PROMPT_TOO_LONG = Fault(400, '{"error": {"message": "maximum context length is 64 tokens, the prompt has 70"}}')
SERVER_ERROR = Fault(500, '{"error": {"message": "out of memory"}}')


def rate_limited(retry_after_s: float) -> Fault:
    """Make a 429 response with a Retry-After header."""
    return Fault(429, '{"error": {"message": "slow down"}}', headers={"Retry-After": str(retry_after_s)})


def limited_until(requests: str, tokens: str = "", *, style: Literal["openai", "anthropic"] = "openai") -> Fault:
    """Make a 429 response without Retry-After, whose headers say when the limits of the rate are reset.

    Args:
        requests: time of the reset, as the server writes it, e.g. `6m0s` or `2026-01-31T12:00:00Z`.
        tokens: that of the tokens; default: none of them are used up.
        style: names of the headers.
    """
    names = {"openai": "x-ratelimit-{0}-{1}", "anthropic": "anthropic-ratelimit-{1}-{0}"}[style]
    said = {"requests": (requests, "0"), "tokens": (tokens or requests, "0" if tokens else "9000")}
    headers = {names.format("reset", of): reset for of, (reset, _) in said.items()}
    headers |= {names.format("remaining", of): left for of, (_, left) in said.items()}
    return Fault(429, '{"error": {"message": "slow down"}}', headers=headers)


def miscount(answer: Json) -> None:
    """Drop a token id and its logprob, if there are any, as vLLM's streaming tool parsers do."""
    choice = answer["choices"][0]
    for tokens in (choice.get("token_ids"), (choice.get("logprobs") or {}).get("content")):
        if tokens:
            tokens.pop()


def _keep_first(answer: Json) -> None:
    """Leave out all choices but the first, and their tokens."""
    answer["choices"], left_out = answer["choices"][:1], answer["choices"][1:]
    answer["usage"]["completion_tokens"] -= sum(len(encode(sampled_text(choice["message"]))) for choice in left_out)


def _edited(edit: Edit) -> Fault:
    return Fault(body=None, edit=edit)


FAULTS: Mapping[str, Fault] = {
    "rate_limited": Fault(429, '{"error": {"message": "slow down"}}'),
    "rate_limited_wait": rate_limited(0.05),
    "rate_limited_reset": limited_until("50ms"),
    "server_error": SERVER_ERROR,
    "unavailable": Fault(503, "no healthy upstream", "text/plain"),
    "overloaded": Fault(529, '{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}'),
    "hang": HANG,
    "trickle": Fault(body=None, kind="trickle"),
    "dropped": DROPPED,
    "cut_off": Fault(body=None, kind="cut"),
    "truncated": Fault(body=None, kind="truncate"),
    "html_page": HTML_PAGE,
    "wrong_type": Fault(body=None, content_type="text/plain"),
    "error_in_success": Fault(200, '{"error": {"message": "worker died", "code": 500}}'),
    "no_choices": _edited(lambda answer: answer.update(choices=[])),
    "fewer_choices": _edited(_keep_first),
    "no_usage": _edited(lambda answer: answer.pop("usage")),
    "miscounted": _edited(miscount),
    "length": _edited(lambda answer: answer["choices"][0].update(finish_reason="length")),
    "content_filter": _edited(lambda answer: answer["choices"][0].update(finish_reason="content_filter")),
    "unauthorized": Fault(401, '{"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}}'),
    "no_credit": Fault(429, '{"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}'),
    "no_model": Fault(404, '{"error": {"message": "The model `scripted` does not exist.", "code": 404}}'),
}
"""Faults of real servers, by name."""

FATAL = frozenset({"unauthorized", "no_credit", "no_model"})
"""Faults that no retry mends: they end a collection at once."""


def random_faults(
    rate: float, *, seed: int = 0, kinds: Collection[str] = tuple(FAULTS.keys() - FATAL)
) -> Iterator[Fault | None]:
    """Draw the `faults` of a `ScriptedEndpoint` for ever: each request meets one of the kinds with probability `rate`.

    Args:
        kinds: names in `FAULTS`; default: all but the fatal ones.

    Raises:
        ConfigError: there is no such kind.
    """
    for unknown in set(kinds) - FAULTS.keys():
        raise ConfigError(f"kinds: {unknown!r} is no fault; {did_you_mean(unknown, FAULTS)}")
    draw, drawn_from = random.Random(seed), sorted(kinds)

    def draws() -> Iterator[Fault | None]:
        while True:
            yield FAULTS[draw.choice(drawn_from)] if draw.random() < rate else None

    return draws()
