"""Parse the error responses of servers and map them onto `r3agent.errors`.

Besides those of `r3agent.http.body` these are text, HTML and nothing, of gateways, proxies and crashed servers, and
redirects to sign-in pages.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any

import httpx
import orjson

from r3agent.errors import (
    AccessError,
    ContentFilterError,
    ContextLengthError,
    ConversationError,
    EndpointError,
    PolicyError,
    ProtocolError,
    RequestError,
)
from r3agent.http.body import ErrorBody, find_error, read_body, read_text
from r3agent.http.delays import MAX_DELAY_S, parse_delay, until_reset_s
from r3agent.http.headers import SECRET
from r3agent.http.refusal import refused_fields
from r3agent.http.urls import ApiURL, redact_url

MAX_MESSAGE = 500
"""Maximum number of characters of a server's message in our own messages."""

MIN_SECRET = 6
"""Minimum number of characters of a header's value to be redacted."""

PLAIN_HEADERS = frozenset(
    {"accept", "accept-encoding", "authorization", "connection", "content-length", "content-type", "host", "user-agent"}
)
"""Headers of every request; the values of all others are the user's, and may be secret."""

NO_KEY = "EMPTY"
"""Key for servers that need none, as vLLM's examples have it."""

WRONG_KEY = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
NO_ROUTE = (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED)
BUSY = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS)

TEXT_REFUSED = (200, 400, 403, 413, 422, 451, 500)
"""Statuses of responses that may refuse a conversation because of its text; llama.cpp uses 500 for some."""

TOO_LONG = re.compile(
    r"context_length_exceeded|exceed_context_size|tokens_limit_reached|max_model_len"  # codes, and vLLM's setting
    r"|context[ _-]?(length|size|window|limit|overflow)|maximum context|maximum model length"  # vLLM, SGLang, OpenAI
    r"|(prompt|input)( text| length)? is too long|input token count|input tokens exceed|too many tokens"
    r"|`?inputs`? (tokens \+|must have less than)"  # TGI
    r"|max_(completion_|new_|output_)?tokens must be at least 1, got (0|-\d+)",  # vLLM: the prompt leaves no room
    re.IGNORECASE,
)
"""Messages and codes of servers that refuse a conversation because it is longer than the context."""

FILTERED = re.compile(
    r"content[ _-]?(filter|policy)|content management policy|moderation|\bflagged\b|safety (system|policy|filter)",
    re.IGNORECASE,
)
"""Messages and codes of servers whose content filter refuses a conversation."""

NO_CREDIT = re.compile(
    r"insufficient[ _](?:quota|balance|credit|fund)|exceeded_current_quota|billing_hard_limit|arrearage"
    r"|budget[ _](?:has been )?exceeded|credit balance is too low",
    re.IGNORECASE,
)
"""Names and messages of servers for an account that is used up. "You exceeded your current quota" is not among them,
because Gemini says so of the quota of a minute."""

TEMPLATE = re.compile(
    r"jinja|chat.?template|template error|roles? must alternate|role not supported|unexpected role", re.I
)
"""Messages of servers whose chat template refuses a conversation; llama.cpp sends them with 500."""


class ServerError(Exception):
    """Error response, or an error inside a successful response.

    Attributes:
        status: HTTP status of the response, or the one that an error in a successful response carries.
        url: URL of the request, with its secrets.
        message: the server's message on one line, without the request's key and headers.
        brief: the beginning of the message, for our own messages.
        code: the server's name or number of the error.
        param: the request field that caused the error.
        is_from_api: the API answered with an error object, so the route exists.
        is_within_success: the error was in a response with status 2xx.
        refuses_field: the error names a field of the request, and says that it is refused.
        wait_s: delay that the server asks for, in seconds; `None` if it asks for none.
    """

    def __init__(self, body: ErrorBody, response: httpx.Response) -> None:
        message = " ".join(redact_secrets(body.message, response.request).split())
        self.message = message or response.reason_phrase
        self.url = str(response.request.url)
        self.brief = self.message[:MAX_MESSAGE]
        self._names = body.names
        self.code, self.param, self.is_from_api = body.code, body.param, body.is_from_api
        self.is_within_success = response.is_success
        self.status = body.status if self.is_within_success else response.status_code
        self.wait_s = parse_delay(_retry_after(response)) or parse_delay(body.retry_after)  # Cloudflare's header is 0
        if self.wait_s is None and self.status == HTTPStatus.TOO_MANY_REQUESTS:
            self.wait_s = until_reset_s({**body.headers, **response.headers})
        fields = refused_fields(self.status, self.message, _sent_fields(response.request), param=self.param)
        self.refuses_field = bool(fields)
        where = f" inside a {response.status_code}:" if self.is_within_success else ""
        super().__init__(f"{self.status}{where} {self.brief}")

    @property
    def is_transient(self) -> bool:
        """Return True if a retry may succeed."""
        is_transient = self.status in BUSY or self.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        is_refusal = self.text_refusal is not None or self.refuses_field or self.is_of_template
        return is_transient and not is_refusal and not self.is_out_of_credit

    @property
    def asks_too_long(self) -> bool:
        """Return True if the server asks for a longer delay than any request waits."""
        return self.wait_s is not None and self.wait_s > MAX_DELAY_S

    @property
    def is_out_of_credit(self) -> bool:
        """Return True if the account or key is used up, for which OpenAI sends 429, Anthropic 400 and others 402."""
        return self.status < HTTPStatus.INTERNAL_SERVER_ERROR and bool(
            NO_CREDIT.search(f"{self._names} {self.message}")
        )

    @property
    def is_of_template(self) -> bool:
        """Return True if the chat template refused the conversation."""
        return self.status == HTTPStatus.INTERNAL_SERVER_ERROR and TEMPLATE.search(self.message) is not None

    @property
    def text_refusal(self) -> type[ConversationError] | None:
        """Return the class of the error if the server refused the conversation because of its text."""
        return text_refusal(self.status, f"{self.code} {self.message}")

    @property
    def has_no_route(self) -> bool:
        """Return True if the server has no such route, rather than no such model or resource."""
        return self.status in NO_ROUTE and not self.is_from_api


def text_refusal(status: int, text: str) -> type[ConversationError] | None:
    """Return the class of the error if a response refuses the conversation because of its text; `text` names why."""
    if status not in TEXT_REFUSED:
        return None
    if TOO_LONG.search(text):
        return ContextLengthError
    return ContentFilterError if status != HTTPStatus.INTERNAL_SERVER_ERROR and FILTERED.search(text) else None


def read_error(response: httpx.Response) -> ServerError:
    """Parse the error of a response whose content has been read."""
    if response.has_redirect_location:
        location = response.headers["location"].partition("?")[0]
        return ServerError(ErrorBody(f"redirects to {redact_url(location)}"), response)
    return ServerError(read_text(response.text), response)


def read_error_event(event: Any, response: Callable[[], httpx.Response]) -> ServerError | None:
    """Parse the error in a successful response or an event of a stream; `None` if there is none."""
    error = find_error(event)
    return None if error is None else ServerError(read_body(error), response())


def policy_error(error: ServerError, *, where: str = "", tries: str = "") -> PolicyError:
    """Map an error of the API onto `r3agent.errors`, with a remedy in the message.

    Args:
        where: prefix of the message.
        tries: number of tries as text, if there were several.
    """
    message = f"{where}{error}"
    sentence = message.removesuffix(".")  # before a remedy
    if kind := error.text_refusal:
        return kind(f"{sentence}; {kind.remedy}")
    refusal: dict[str, Any] = {"status": error.status, "refusal": error.message, "param": error.param}
    if error.is_out_of_credit:
        return AccessError(f"{sentence}; the account or key has no credit left", **refusal)
    if (
        error.refuses_field
        or error.is_of_template
        or error.status in (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY)
    ):
        return RequestError(message, **refusal)
    if error.is_transient:
        return EndpointError(f"{message}{tries}{_too_long(error)}")
    if error.is_within_success:  # the route and the key are right, and other requests may succeed
        return EndpointError(f"{message}{tries}")
    if error.status in WRONG_KEY:
        return AccessError(f"{sentence}; check the API key", **refusal)
    if error.status == HTTPStatus.PAYMENT_REQUIRED:
        return AccessError(f"{sentence}; the account or key has no credit left", **refusal)
    if error.status in NO_ROUTE:
        api = ApiURL(error.url)
        has_api = error.is_from_api and api.is_versioned
        return AccessError(f"{sentence}; check the model's name{'' if has_api else f'; {api.hint}'}", **refusal)
    if error.status < HTTPStatus.BAD_REQUEST:
        return ProtocolError(message)
    return RequestError(message, **refusal)


def _too_long(error: ServerError) -> str:
    """Say that nothing is sent again, because the server asks for too long a delay; empty if it does not."""
    if error.wait_s is None or not error.asks_too_long:
        return ""
    wait_s = round(error.wait_s)
    then = datetime.now().astimezone() + timedelta(seconds=wait_s)
    return (
        f"; it asks to wait {wait_s} s, and a request waits at most {MAX_DELAY_S:.0f} s: run it again after "
        f"{then:%Y-%m-%d %H:%M %Z}, or use another key or endpoint"
    )


def no_answer(error: httpx.RequestError | TimeoutError, timeout_s: float) -> str:
    """Describe why there was no response."""
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return f"no answer within {timeout_s:g} s"
    return redact_secrets(str(error), error.request) or type(error).__name__


def redact_key(text: str, api_key: str | None) -> str:
    return text.replace(api_key, "[the API key]") if api_key and api_key != NO_KEY else text


def redact_secrets(text: str, request: httpx.Request) -> str:
    """Remove the key, and the values of further headers and of secrets in the query, of a request from a text."""
    text = redact_key(text, request.headers.get("authorization", "").rpartition(" ")[2])
    for name, value in request.headers.items():
        if name not in PLAIN_HEADERS and len(value) >= MIN_SECRET:
            text = text.replace(value, f"[the header {name}]")
    for name, value in request.url.params.multi_items():
        if SECRET.search(name) and len(value) >= MIN_SECRET:
            text = text.replace(value, f"[the {name} of the URL]")
    return text


def _retry_after(response: httpx.Response) -> str:
    with suppress(ValueError):
        return str(float(response.headers.get("retry-after-ms", "")) / 1000)
    return response.headers.get("retry-after", "")


def _sent_fields(request: httpx.Request) -> list[str]:
    """Return the names of the fields in a request's JSON body."""
    with suppress(httpx.RequestNotRead, ValueError):
        body = orjson.loads(request.content)
        return list(body) if isinstance(body, dict) else []
    return []
