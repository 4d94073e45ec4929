"""ASGI application with vLLM's routes over one engine."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from r3agent.serve.engine.engine import Engine
from r3agent.serve.errors import APIError, server_error
from r3agent.serve.http.admin import ControlRoutes, ModelRoutes
from r3agent.serve.http.generation import CLIENT_LEFT, GenerationRoutes

OPEN_PATHS = {"/health", "/version"}
"""Paths that need no API key."""


def create_app(engine: Engine, *, api_key: str | None = None) -> Starlette:
    """Make the application, whose lifespan starts and stops the engine.

    Args:
        engine: generates the completions.
        api_key: required as `Authorization: Bearer KEY` on every route except /health and /version.
    """
    models, control = ModelRoutes(engine), ControlRoutes(engine)
    generation = GenerationRoutes(engine, models.resolve)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncGenerator[None, None]:
        engine.start()
        try:
            yield
        finally:
            engine.close()

    return Starlette(
        routes=[
            Route("/v1/chat/completions", generation.chat, methods=["POST"]),
            Route("/v1/completions", generation.completion, methods=["POST"]),
            Route("/v1/models", models.list_models),
            Route("/v1/load_lora_adapter", models.load_adapter, methods=["POST"]),
            Route("/v1/unload_lora_adapter", models.unload_adapter, methods=["POST"]),
            Route("/collective_rpc", models.collective_rpc, methods=["POST"]),
            Route("/reset_prefix_cache", control.reset_prefix_cache, methods=["POST"]),
            Route("/pause", control.pause, methods=["POST"]),
            Route("/resume", control.resume, methods=["POST"]),
            Route("/is_paused", control.is_paused),
            Route("/weight_info", models.weight_info),
            Route("/update_weight_version", models.update_weight_version, methods=["POST"]),
            Route("/health", control.health),
            Route("/version", control.version),
            Route("/load", control.load),
        ],
        middleware=[Middleware(BearerAuth, api_key=api_key)] if api_key else [],
        exception_handlers=dict.fromkeys((APIError, HTTPException, ClientDisconnect, Exception), _error_response),
        lifespan=lifespan,
    )


class BearerAuth:
    """ASGI middleware that refuses requests without the API key."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._digest = hashlib.sha256(api_key.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._has_key(Headers(scope=scope)):
            await self._app(scope, receive, send)
        else:
            message = "the API key is missing or wrong; send `Authorization: Bearer KEY`"
            await APIError(message, HTTPStatus.UNAUTHORIZED).response()(scope, receive, send)

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and secrets.compare_digest(
            hashlib.sha256(key.encode()).digest(), self._digest
        )


async def _error_response(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnect):  # before its request was read
        return CLIENT_LEFT
    if isinstance(error, HTTPException):  # from the router: an unknown path or method
        status = HTTPStatus(error.status_code)
        error = APIError(f"{request.method} {request.url.path}: {status.phrase}", status)
    return server_error(error).response()
