"""Errors in responses to clients, in OpenAI's format."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import orjson
from starlette.responses import Response

TYPES = {
    HTTPStatus.BAD_REQUEST: "BadRequestError",
    HTTPStatus.UNAUTHORIZED: "AuthenticationError",
    HTTPStatus.NOT_FOUND: "NotFoundError",
    HTTPStatus.SERVICE_UNAVAILABLE: "ServiceUnavailableError",
    HTTPStatus.INTERNAL_SERVER_ERROR: "InternalServerError",
}
"""Error types by status, as in vLLM."""


class APIError(Exception):
    """Error with its HTTP status; `param` names the invalid field of the request."""

    def __init__(self, message: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, self.status.phrase)
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.status.value}}

    def response(self) -> Response:
        response = json_response(self.body(), self.status)
        if self.status is HTTPStatus.SERVICE_UNAVAILABLE:
            response.headers["Retry-After"] = "1"
        return response


def server_error(error: BaseException) -> APIError:
    """Return an API error unchanged, and any other as an internal server error."""
    if isinstance(error, APIError):
        return error
    return APIError(f"{type(error).__name__}: {error}", HTTPStatus.INTERNAL_SERVER_ERROR)


def json_response(body: Any, status: HTTPStatus = HTTPStatus.OK) -> Response:
    return Response(orjson.dumps(body), status_code=status, media_type="application/json")
