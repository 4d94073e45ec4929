"""Requests that are no calls: they pass unchanged, or count the tokens of a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import aiohttp
from aiohttp import web

from r3agent.gateway.answers import json_answer
from r3agent.gateway.dialect import Dialect, estimate_tokens, tokenize_request
from r3agent.gateway.episodes import Refusal
from r3agent.gateway.relay import is_success
from r3agent.gateway.upstream import Target, Upstream, to_client
from r3agent.http.events import parse_json
from r3agent.recording.memory import Memory
from r3agent.records.json_values import json_bytes

GENERATIONS = ("/completions",)
"""Routes of generations that are not recorded."""


class Passing:
    """Requests to the upstream that are not recorded."""

    def __init__(self, upstream: Upstream, target: Target, memory: Memory) -> None:
        self._upstream, self._target, self._memory = upstream, target, memory

    async def count(self, request: web.Request, dialect: Dialect, chat: Mapping[str, Any]) -> web.Response:
        """Answer with the number of tokens of a prompt: vLLM's, or an estimate where the upstream has no such route."""
        headers = self._target.fill_in(request.headers, without=("content-type", "accept"))
        headers["Content-Type"] = "application/json"
        body = json_bytes(tokenize_request(chat))
        url = self._target.url("/tokenize", of_server=True)
        async with await self._upstream.send(self._target, "POST", url, headers, body) as response:
            with suppress(ValueError, aiohttp.ClientError, TimeoutError):
                answer = parse_json(await response.read())
                if is_success(response) and isinstance(answer, dict) and isinstance(answer.get("count"), int):
                    return json_answer(dialect.count(answer["count"]))
        return json_answer(dialect.count(estimate_tokens(chat), is_estimate=True))

    async def run(self, request: web.Request, path: str, content: bytes) -> web.StreamResponse:
        """Hand a request on unchanged, and its response."""
        if path in GENERATIONS:
            self._memory.report(
                path, "%s: calls are not recorded: only chat completions, responses and messages are", path
            )
        if "/../" in f"{path}/":
            raise Refusal(404, f"{path}: no route")
        headers = self._target.fill_in(request.headers)
        n_before = 5 if "episode" in request.match_info else 2
        tail = "/" + request.rel_url.raw_path.split("/", n_before)[n_before]
        url = self._target.url(tail, request.rel_url.raw_query_string)
        async with await self._upstream.send(self._target, request.method, url, headers, content or None) as response:
            out = web.StreamResponse(status=response.status, headers=to_client(response.headers))
            await out.prepare(request)
            try:
                async for part in response.content.iter_any():
                    await out.write(self._target.redact(part))
            except Exception as error:
                if request.transport is not None:
                    request.transport.close()
                raise self._upstream.failure(self._target, error) from None
            await out.write_eof()
            return out
