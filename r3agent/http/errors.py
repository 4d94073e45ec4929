"""Parse the error responses of servers and map them onto `r3agent.errors`.

{"error": {"message", "code", "param"}}     OpenAI; also {"error": "text"}, without "error", or in a list
{"detail": "text" or [{"loc", "msg"}]}      FastAPI
text, HTML, nothing                         gateways, proxies, crashed servers
a redirect                                  sign-in pages
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, NamedTuple

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
from r3agent.http.urls import redact_url

MAX_MESSAGE = 500
"""Maximum number of characters of a server's message in our own messages."""

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
    r"|`?inputs`? (tokens \+|must have less than)",  # TGI
    re.IGNORECASE,
)
"""Messages and codes of servers that refuse a conversation because it is longer than the context."""

FILTERED = re.compile(
    r"content[ _-]?(filter|policy)|content management policy|moderation|\bflagged\b|safety (system|policy|filter)",
    re.IGNORECASE,
)
"""Messages and codes of servers whose content filter refuses a conversation."""


class _Body(NamedTuple):
    """Error in the body of a response."""

    message: str
    code: str | None = None
    param: str | None = None
    is_from_api: bool = False


class ServerError(Exception):
    """Error response, or an error inside a successful response.

    Attributes:
        status: HTTP status of the response.
        message: the server's message on one line, without the API key.
        brief: the beginning of the message, for our own messages.
        code: the server's name or number of the error.
        param: the request field that caused the error.
        is_from_api: the API answered with an error object, so the route exists.
        retry_after: value of the Retry-After header.
    """

    def __init__(self, body: _Body, response: httpx.Response) -> None:
        message = " ".join(redact_key(body.message, _sent_key(response.request)).split())
        self.status = response.status_code
        self.message = message or response.reason_phrase
        self.code, self.param, self.is_from_api = body.code, body.param, body.is_from_api
        self.retry_after = response.headers.get("retry-after", "")
        self.brief = self.message[:MAX_MESSAGE]
        super().__init__(f"{self.status} {self.brief}")

    @property
    def is_transient(self) -> bool:
        """Return True if a retry may succeed."""
        is_transient = self.status in BUSY or self.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        return is_transient and self.text_refusal is None

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
        return ServerError(_Body(f"redirects to {redact_url(location)}"), response)
    try:
        return ServerError(_read_body(orjson.loads(response.content)), response)
    except orjson.JSONDecodeError:
        return ServerError(_Body(response.text), response)


def read_error_event(event: Any, response: httpx.Response) -> ServerError | None:
    """Parse the error in a successful response or an event of a stream; `None` if there is none."""
    return ServerError(_read_body(event), response) if isinstance(event, dict) and event.get("error") else None


def _read_body(body: Any) -> _Body:
    if isinstance(body, list) and body and isinstance(body[0], dict) and "error" in body[0]:
        body = body[0]
    is_from_api = isinstance(body, dict) and ("error" in body or body.get("object") == "error")
    error = body
    for key in ("error", "detail"):
        if isinstance(error, dict) and error.get(key):
            error = error[key]
    if isinstance(error, list) and error and all(isinstance(item, dict) for item in error):  # FastAPI's
        places = [".".join(map(str, item.get("loc") or ("body",))) for item in error]
        texts = (f"{place}: {item.get('msg')}" for place, item in zip(places, error, strict=True))
        return _Body("; ".join(texts), param=places[0].rpartition(".")[2], is_from_api=is_from_api)
    fields: dict[str, Any] = error if isinstance(error, dict) else {}
    code, param = (None if fields.get(name) is None else str(fields[name]) for name in ("code", "param"))
    message = fields.get("message") or error
    return _Body("" if message is None else str(message), code, param, is_from_api)


def policy_error(error: ServerError, *, where: str = "", tries: str = "") -> PolicyError:
    """Map an error of the API onto `r3agent.errors`, with a remedy in the message.

    Args:
        where: prefix of the message.
        tries: number of tries as text, added to the message of a transient error.
    """
    message = f"{where}{error}"
    if refusal := error.text_refusal:
        return refusal(f"{message}; {refusal.remedy}")
    if error.status in WRONG_KEY:
        return AccessError(f"{message}; check the API key")
    if error.status in NO_ROUTE:
        return AccessError(f"{message}; check the model's name and that base_url ends in /v1")
    if error.is_transient:
        return EndpointError(f"{message}{tries}")
    if error.status < HTTPStatus.BAD_REQUEST:
        return ProtocolError(message)
    return RequestError(message, refusal=" ".join(filter(None, [error.param, error.message])))


def refused_fields(refusal: str, fields: Iterable[str]) -> set[str]:
    """Find those of the request's `fields` that the error message of a refusal names, in any case: `topK`, `Top-k`."""
    names = {field: field.replace("_", "[_ -]?") for field in fields}
    return {field for field, name in names.items() if re.search(rf"(?i)(?<!\\)\b{name}\b", refusal)}


def no_answer(error: httpx.RequestError | TimeoutError, timeout_s: float) -> str:
    """Describe why there was no response."""
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return f"no answer within {timeout_s:g} s"
    return redact_key(str(error), _sent_key(error.request)) or type(error).__name__


def redact_key(text: str, api_key: str | None) -> str:
    return text.replace(api_key, "[the API key]") if api_key and api_key != NO_KEY else text


def _sent_key(request: httpx.Request) -> str:
    return request.headers.get("authorization", "").partition(" ")[2]
