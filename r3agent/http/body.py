"""Read the error in the body of a response, or in an event of a stream, in the shapes of all servers.

{"error": {"message", "code", "param"}}         OpenAI; also {"error": "text"}, or in a list
{"object": "error", "message", "code"}          vLLM and Mistral
{"error": {"code", "metadata": {"raw"}}}        OpenRouter, whose `raw` is the provider's body
{"detail": "text" or [{"loc", "msg"}]}          FastAPI
{"choices": [{"finish_reason": "error"}]}       OpenRouter; also with an `error` in the choice; vLLM: "abort"
{"type": "error", "error": {"type"}}            Anthropic
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

MESSAGES = ("message", "detail", "msg", "error_message", "status_msg", "title", "errors", "details", "description")
"""Keys of the message of an error, in the order of preference."""

INNER = ("error", "detail", "message", "details", "innererror", "base_resp")
"""Keys of an error within an error."""

CODES = ("code", "status", "status_code", "statusCode", "error_code", "http_status", "type", "error_type")
"""Keys of the status of an error, as a number or a name."""

STATUSES = {
    429: r"rate.?limit|too.?many.?req|resource.?exhausted|quota|throttl",
    529: r"overload",
    503: r"unavailable|no.?capacity|at capacity|busy|try again",
    504: r"time.?d?.?out|deadline",
    402: r"insufficient.?(credit|balance|fund)|payment",
    401: r"unauth|authentication|(invalid|incorrect).?api.?key",
    403: r"forbidden|permission|access.?denied",
    404: r"not.?found",
    400: r"invalid|bad.?request|unsupported|unprocessable|context.?length|content.?(filter|policy)|validation",
    500: r"internal|server.?error|api.?error",
}
"""Names of errors, by the HTTP status that they stand for; the first that fits decides."""

BROKEN_OFF = re.compile(r"(?i)\w*(?:abort|cancel|error|time_?d?_?out|insufficient|interrupt|fail)\w*")
"""Finish reasons of servers that broke a completion off, e.g. because their weights were swapped."""

UNKNOWN = 502
"""Status of an error that names none: the server failed behind its own front."""


class ErrorBody(NamedTuple):
    """Error in the body of a response."""

    message: str
    code: str | None = None
    param: str | None = None
    is_from_api: bool = False
    """True if it is an error object, so the route exists."""
    status: int = UNKNOWN
    """HTTP status that the error carries itself."""
    names: str = ""
    """Codes and types of the error and of those within it."""
    retry_after: str = ""
    """Delay that it asks for, as in a Retry-After header."""
    headers: Mapping[str, str] = {}
    """Headers of the provider, which a gateway hands on in the body."""


def find_error(event: Any) -> Any:
    """Return the error in the body of a successful response or in an event of a stream; `None` if there is none."""
    if isinstance(event, list):
        return next(filter(None, map(find_error, event[:1])), None)
    if not isinstance(event, dict):
        return None
    if event.get("error") or event.get("object") == "error" or event.get("type") == "error":
        return event
    choices = event.get("choices") or ()
    for choice in choices if isinstance(choices, list) else ():
        reason = finish_reason(choice) if isinstance(choice, dict) else None
        if isinstance(choice, dict) and (choice.get("error") or BROKEN_OFF.fullmatch(reason or "")):
            return {"error": choice.get("error") or f"finish_reason = {reason!r}"}
    if choices or not any(isinstance(event.get(key), str | list | dict) and event[key] for key in MESSAGES):
        base = event.get("base_resp") or {}  # MiniMax
        return {"error": base} if isinstance(base, dict) and base.get("status_code") else None
    return event


def finish_reason(choice: Mapping[str, Any]) -> str | None:
    """Return the finish reason of a choice; SGLang's own is an object, and an empty text is none."""
    reason: Any = choice.get("finish_reason")
    reason = reason.get("type") if isinstance(reason, Mapping) else reason
    return str(reason) if reason else None


def read_text(text: str) -> ErrorBody:
    """Read an error from the text of a response, which may be JSON."""
    try:
        return read_body(json.loads(text))
    except (ValueError, RecursionError):
        return ErrorBody(text)


def read_body(body: Any) -> ErrorBody:
    """Read an error of any shape."""
    if isinstance(body, list) and body and isinstance(body[0], dict) and "error" in body[0]:
        body = body[0]
    levels = list(_levels(body))
    code = next((str(level[key]) for level in levels for key in CODES[:1] if level.get(key) is not None), None)
    params = (level.get("param") for level in levels)
    return ErrorBody(
        message=_message(body),
        code=code,
        param=next((param for param in params if isinstance(param, str) and param), None) or _places(levels),
        is_from_api=isinstance(body, dict) and ("error" in body or body.get("object") == "error"),
        status=_status(_names(levels), _message(body)),
        names=" ".join(_names(levels)),
        retry_after=_retry_after(levels),
        headers=_headers(levels),
    )


def _levels(error: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the objects of an error from the innermost error to the outermost, and their parts."""
    error = _parsed(error)
    if isinstance(error, list):
        for item in error:
            yield from _levels(item, depth + 1)
    if not isinstance(error, dict) or depth > 6:
        return
    for key in INNER:
        yield from _levels(error.get(key), depth + 1)
    yield error
    if isinstance(metadata := error.get("metadata"), dict):
        yield from _levels(metadata.get("raw"), depth + 1)
        yield metadata


def _message(error: Any) -> str:
    """Return the texts of an error, the provider's own after the gateway's."""
    error = _parsed(error)
    if isinstance(error, list):
        return "; ".join(map(_message, error))
    if not isinstance(error, dict):
        return "" if error is None else str(error)
    if "loc" in error:  # FastAPI's
        loc = error["loc"]
        place = ".".join(map(str, loc if isinstance(loc, list) else [loc])) or "body"
        return f"{place}: {error.get('msg') or error.get('message') or error.get('type') or error.get('input')}"
    inner = error.get("error") or error.get("base_resp")
    own = next((error[key] for key in MESSAGES if error.get(key)), None)
    if isinstance(inner, dict | list):
        own = inner
    elif inner and own:
        own = f"{inner}: {_message(own)}"  # Spring's
    text = str(error) if own is None and not inner else _message(own or inner)
    raw = (error.get("metadata") or {}).get("raw") if isinstance(error.get("metadata"), dict) else None
    return f"{text}: {_message(raw)}" if raw else text


def _parsed(error: Any) -> Any:
    """Parse an error that is the text of a JSON object."""
    if isinstance(error, str) and error.lstrip().startswith("{"):
        with suppress(ValueError):
            return json.loads(error)
    return error


def _places(levels: list[dict[str, Any]]) -> str | None:
    """Return the places of FastAPI's errors, without the leading `body`."""
    locs = [level["loc"] for level in levels if isinstance(level.get("loc"), list)]
    places = [".".join(str(part) for part in loc if part != "body") for loc in locs]
    params = [level["params"] for level in levels if isinstance(level.get("params"), dict)]
    places += [str(param.get("additionalProperty") or "") for param in params]  # Ajv's
    return " ".join(filter(None, places)) or None


def _names(levels: list[dict[str, Any]]) -> list[str]:
    return [str(level[key]) for level in levels for key in CODES if isinstance(level.get(key), str | int)]


def _status(codes: list[str], message: str) -> int:
    for code in codes:
        if re.fullmatch("[45][0-9]{2}", code):
            return int(code)
    if number := re.match(r"(?:error[ _]?(?:code)?:? |http )?([45]\d\d)\b", message, re.IGNORECASE):
        return int(number[1])
    for text in (" ".join(codes), message):
        for status, names in STATUSES.items():
            if re.search(names, text, re.IGNORECASE):
                return status
    return UNKNOWN


def _headers(levels: list[dict[str, Any]]) -> dict[str, str]:
    found = [level["headers"] for level in levels if isinstance(level.get("headers"), dict)]
    return {str(name).lower(): str(value) for headers in found for name, value in headers.items()}


def _retry_after(levels: list[dict[str, Any]]) -> str:
    keys = ("retry-after", "retry_after", "retryDelay")
    named = _headers(levels)
    return next((str(level[key]) for level in (named, *levels) for key in keys if level.get(key)), "")
