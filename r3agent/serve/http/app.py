"""The ASGI application: vLLM's routes over one engine."""

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
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from r3agent.serve.engine.engine import Engine
from r3agent.serve.errors import APIError, error_response, server_error
from r3agent.serve.http.admin import AdminRoutes, ServedModels
from r3agent.serve.http.generation import GenerationRoutes

OPEN_PATHS = {"/health", "/version"}
"""Answered without a key."""


def create_app(engine: Engine, *, api_key: str | None = None) -> Starlette:
    """The application; its lifespan starts and stops the engine.

    Args:
        api_key: asked for as `Authorization: Bearer KEY` on every route but /health and /version.
    """
    models = ServedModels(engine)
    generation, admin = GenerationRoutes(engine, models), AdminRoutes(engine, models)

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
            Route("/v1/models", admin.models),
            Route("/v1/load_lora_adapter", admin.load_adapter, methods=["POST"]),
            Route("/v1/unload_lora_adapter", admin.unload_adapter, methods=["POST"]),
            Route("/collective_rpc", admin.collective_rpc, methods=["POST"]),
            Route("/reset_prefix_cache", admin.reset_prefix_cache, methods=["POST"]),
            Route("/pause", admin.pause, methods=["POST"]),
            Route("/resume", admin.resume, methods=["POST"]),
            Route("/is_paused", admin.is_paused),
            Route("/weight_info", admin.weight_info),
            Route("/update_weight_version", admin.update_weight_version, methods=["POST"]),
            Route("/health", admin.health),
            Route("/version", admin.version),
            Route("/load", admin.load),
        ],
        middleware=[Middleware(BearerAuth, api_key=api_key)] if api_key else [],
        exception_handlers={APIError: _api_error, HTTPException: _http_error, Exception: _unexpected_error},
        lifespan=lifespan,
    )


class BearerAuth:
    """Refuses requests without the key; an ASGI middleware."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._digest = hashlib.sha256(api_key.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._knows_key(Headers(scope=scope)):
            await self._app(scope, receive, send)
        else:
            message = "the API key is missing or wrong; send `Authorization: Bearer KEY`"
            await error_response(APIError(message, HTTPStatus.UNAUTHORIZED))(scope, receive, send)

    def _knows_key(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and secrets.compare_digest(
            hashlib.sha256(key.encode()).digest(), self._digest
        )


async def _api_error(_request: Request, error: Exception) -> Response:
    return error_response(error if isinstance(error, APIError) else server_error(error))


async def _http_error(request: Request, error: Exception) -> Response:
    """An unknown path or method."""
    status = HTTPStatus(error.status_code) if isinstance(error, HTTPException) else HTTPStatus.NOT_FOUND
    return error_response(APIError(f"{request.method} {request.url.path}: {status.phrase}", status))


async def _unexpected_error(_request: Request, error: Exception) -> Response:
    return error_response(server_error(error))
