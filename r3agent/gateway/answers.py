"""Responses of the gateway itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from r3agent.gateway.dialect import ChatApi, Dialect
from r3agent.records.json_values import json_bytes


def json_answer(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(status=status, body=json_bytes(value), content_type="application/json", headers=headers)


def error_answer(
    dialect: Dialect | None, status: int, message: str, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Answer with an error in the client's dialect, by default OpenAI's."""
    return json_answer((dialect or ChatApi()).error(status, message), status=status, headers=headers)
