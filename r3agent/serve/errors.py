"""Errors that a client of the server sees, in the shape of OpenAI's API."""

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
"""Names of the errors, as in vLLM."""


class APIError(Exception):
    """An error with its HTTP status; `param` names the field of the request that is wrong."""

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
    """An API error as it is; any other as an internal error of the server."""
    if isinstance(error, APIError):
        return error
    return APIError(f"{type(error).__name__}: {error}", HTTPStatus.INTERNAL_SERVER_ERROR)


def json_response(body: Any, status: HTTPStatus = HTTPStatus.OK) -> Response:
    return Response(orjson.dumps(body), status_code=status, media_type="application/json")
