"""Relay of one call: its request to the upstream, its answer to the client, and both to the record.

The client gets the bytes of the upstream as they come, without the fields that only the record requested. A request
whose added fields the upstream refuses is sent again without them, before the client has seen anything of an answer.
A stream that breaks off is broken off towards the client too; a client that leaves cancels the upstream's request.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

import aiohttp
import httpx
from aiohttp import web
from multidict import CIMultiDict

from r3agent.errors import EndpointError, PolicyError, ProtocolError, UnreachableError
from r3agent.gateway.answers import error_answer
from r3agent.gateway.call import Call
from r3agent.gateway.dialect import EventStream
from r3agent.gateway.lines import Lines, data_of
from r3agent.gateway.upstream import CHAT, KEYS, Upstream, UpstreamError, to_client
from r3agent.http.body import ErrorBody, find_error, read_body, read_text
from r3agent.http.delays import OF_DELAYS
from r3agent.http.errors import ServerError, policy_error, read_error
from r3agent.policy.stream import read_body as read_completion
from r3agent.recording.wire import is_blank
from r3agent.records.json_values import json_bytes

EVENTS = "text/event-stream"


class _Again(Exception):
    """The upstream refuses the added fields in a successful response."""


class Relay:
    """Relay of the calls of one gateway."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def run(self, call: Call) -> web.StreamResponse:
        """Relay one call and return the response to the client."""
        retry, response = call.target.retry, web.StreamResponse()
        reasons: list[Exception] = []  # of the last request, for another one

        async def once() -> web.StreamResponse:
            nonlocal response
            earlier, call.failed, call.cause, call.failure = call.failed, None, None, ""
            reasons.clear()
            try:
                response = await self._once(call)
            except BaseException:  # the client has left
                call.failed = earlier
                raise
            if retry is not None and (reason := _reason(call, response)) is not None:
                reasons.append(reason)
                raise reason
            return response

        try:
            await (once() if retry is None else retry.run(once, lambda: bool(reasons)))
        except (ServerError, httpx.RequestError, ValueError) as error:
            if error not in reasons:
                raise  # of the gateway itself
        finally:
            if call.failed is not None:
                call.exchange.fail(call.failed)
        return response

    async def _once(self, call: Call) -> web.StreamResponse:
        """Send a request, and again without the added fields that are refused."""
        headers = call.target.fill_in(call.request.headers, without=("content-type", "accept"))
        headers["Content-Type"] = "application/json"
        headers["Accept"] = EVENTS if call.exchange.is_stream else "application/json"
        if call.is_translated and "Authorization" not in headers and (key := headers.get("x-api-key")):
            headers["Authorization"] = f"Bearer {key}"
        url = call.target.url(CHAT, "" if call.is_translated else call.request.rel_url.raw_query_string)
        while True:
            try:
                response = await self._upstream.send(call.target, "POST", url, headers, json_bytes(call.exchange.body))
                async with response:
                    return await self._answer(call, response)
            except _Again:
                continue
            except UpstreamError as error:
                is_doubtful = error.status == 502 and not error.is_unreachable and not call.exchange.has_begun
                if is_doubtful and call.exchange.repeats(None, ErrorBody(str(error))):
                    continue
                kind = UnreachableError if error.is_unreachable else EndpointError
                return await self._fail(call, error.status, str(error), kind(call.redact(str(error))))

    async def _answer(self, call: Call, response: aiohttp.ClientResponse) -> web.StreamResponse:
        if is_success(response) and response.content_type == EVENTS and call.exchange.is_stream:
            return await self._stream(call, response)
        content = await self._read(call, response)
        if not is_success(response):
            return await self._refuse(call, response, content)
        answer: Any = None
        with suppress(KeyError, TypeError, AttributeError, ValueError):
            answer = read_completion(content)
        if call.exchange.repeats_after(answer):
            raise _Again
        if not call.is_translated and (error := find_error(answer)) is not None:
            call.failure = call.redact(read_body(error).message[:2000])
            return self._hand_on(call, response, content)
        translated = _translated(call, answer) if call.is_translated else None
        found: Any = answer
        if isinstance(found, Mapping) and found.get("choices"):
            call.exchange.take_whole(lambda: answer)
        else:
            call.failure = "the upstream's answer is not a chat completion"
            call.failed = ProtocolError(f"{call.target.shown}: {call.failure}")
        headers = to_client(response.headers)
        headers.update(call.extra)
        if translated is not None:
            return web.Response(status=response.status, headers=headers, body=json_bytes(translated))
        fitted = call.exchange.fit(answer)
        body = content if fitted is answer or content.lstrip().startswith(b"data:") else json_bytes(fitted)
        return web.Response(status=response.status, headers=headers, body=body)

    async def _refuse(self, call: Call, response: aiohttp.ClientResponse, content: bytes) -> web.StreamResponse:
        """Hand an error on, unless it refuses the added fields."""
        read = read_text(content.decode(errors="replace"))
        if call.exchange.repeats(response.status, read):
            raise _Again
        call.failure = f"the upstream answered with status {response.status}"
        if call.out is not None or call.is_translated:
            error, headers = _as_error(call, response, content), to_client(response.headers)
            return await self._fail(call, response.status, read.message[:2000], error, headers)
        return self._hand_on(call, response, content)

    def _hand_on(self, call: Call, response: aiohttp.ClientResponse, content: bytes) -> web.Response:
        """Hand an error on as the upstream wrote it."""
        call.failed = _as_error(call, response, content)
        headers = to_client(response.headers)
        headers.update(call.extra)
        return web.Response(status=response.status, headers=headers, body=call.target.redact(content))

    async def _read(self, call: Call, response: aiohttp.ClientResponse) -> bytes:
        try:
            return await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._upstream.failure(call.target, error) from None

    async def _fail(
        self, call: Call, status: int, message: str, error: PolicyError, headers: CIMultiDict[str] | None = None
    ) -> web.StreamResponse:
        """Tell the client that there is no answer, or break its stream off."""
        exchange = call.exchange
        if exchange.has_begun:
            exchange.note(error)
        else:
            call.failed = error
        call.failure = call.failure or call.redact(message)
        message = call.target.redact(message.encode(errors="replace")).decode()
        if call.out is None:
            kept = {name: value for name, value in (headers or {}).items() if name.lower().startswith("retry-after")}
            return error_answer(call.dialect, status, message, {**kept, **call.extra})
        if call.is_translated or not exchange.has_begun:
            for event in call.events.fail(status, message):
                await call.out.write(event.wire)
            await call.out.write_eof()
        elif call.request.transport is not None:
            call.request.transport.close()  # without the end of the chunks, as the upstream broke off
        return call.out

    # ---- streams ----

    async def _stream(self, call: Call, response: aiohttp.ClientResponse) -> web.StreamResponse:
        exchange, lines = call.exchange, Lines()
        events = call.events if call.is_translated else None
        is_again = call.out is not None
        if not exchange.added:
            await self._begin(call, response)
        async for content in self._content(call, response):
            await self._pass_on(call, response, lines.split(content), events, skip_blank=is_again)
        await self._pass_on(call, response, [lines.rest] if lines.rest else [], events, skip_blank=is_again)
        if not exchange.has_begun and exchange.ends_empty():
            raise _Again
        out = await self._begin(call, response)
        if not exchange.is_answered:
            call.failure = f"{call.target.shown}: the stream ended before the completion"
            if events is not None:
                raise UpstreamError(call.failure)
            exchange.note(EndpointError(call.failure))  # the client may take it for a whole answer
        if events is not None:
            for event in events.end():
                await out.write(event.wire)
        await out.write_eof()
        return out

    async def _content(self, call: Call, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        try:
            async for content in response.content.iter_any():
                yield content
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._upstream.failure(call.target, error) from None

    async def _begin(self, call: Call, response: aiohttp.ClientResponse) -> web.StreamResponse:
        if call.out is None:
            headers = to_client(response.headers)
            headers.update(call.extra)
            call.out = web.StreamResponse(status=response.status, headers=headers)
            await call.out.prepare(call.request)
        return call.out

    async def _pass_on(
        self, call: Call, response: aiohttp.ClientResponse, lines: Any, events: EventStream | None, *, skip_blank: bool
    ) -> None:
        """Write the lines of a stream to the client, and then its chunks to the record."""
        exchange = call.exchange
        pieces: list[bytes] = []
        later: list[Any] = []
        is_dropped = False
        for line in lines:
            chunk = data_of(line)
            if not isinstance(chunk, dict):
                if not (is_dropped and not line.strip()) and events is None:
                    pieces.append(line)
                is_dropped = False
                continue
            if exchange.has_begun:
                later.append(chunk)
            elif exchange.repeats_at(chunk):
                raise _Again
            elif skip_blank and is_blank(chunk):
                is_dropped = True  # the client has the role already
                continue
            else:
                exchange.take_chunk(chunk)
            if events is not None:
                if (error := find_error(chunk)) is not None:
                    raise _as_failure(error)
                pieces += [event.wire for event in events.take(chunk)]
                continue
            fitted = exchange.fit(chunk)
            is_dropped = fitted is None
            if fitted is chunk:
                pieces.append(line if chunk.get("choices") else call.target.redact(line))
            elif fitted is not None:
                pieces.append(b"data: " + json_bytes(fitted) + line[len(line.rstrip(b"\r\n")) :])
        if pieces:
            out = await self._begin(call, response)
            await out.write(b"".join(pieces))
        for chunk in later:
            exchange.take_chunk(chunk)


def _translated(call: Call, answer: Any) -> Any:
    """Translate a whole answer into the client's dialect.

    Raises:
        UpstreamError: it is no chat completion.
    """
    if (error := find_error(answer)) is not None:
        raise _as_failure(error)
    try:
        return call.dialect.from_chat(answer, call.body)
    except ProtocolError as error:
        raise UpstreamError(f"{call.target.shown}: {error}") from None


def _as_failure(error: Any) -> UpstreamError:
    """Map an error in a successful response."""
    read = read_body(error)
    return UpstreamError(read.message[:2000], status=read.status)


def is_success(response: aiohttp.ClientResponse) -> bool:
    return 200 <= response.status < 300


def _as_error(call: Call, response: aiohttp.ClientResponse, content: bytes) -> PolicyError:
    """Map an error response onto `r3agent.errors`, as for r3agent's own requests."""
    sent = call.target.fill_in(call.request.headers)
    keys = {name: value for name, value in sent.items() if name.lower() in KEYS}
    secret = {**keys, **call.target.headers}.items()
    headers = [(name.encode(), value.encode(errors="surrogateescape")) for name, value in secret]
    request = httpx.Request("POST", str(response.url), headers=headers)
    waits = [(name, value) for name, value in response.headers.items() if OF_DELAYS.search(name)]
    call.cause = read_error(httpx.Response(response.status, headers=waits, content=content, request=request))
    return policy_error(call.cause, where=f"{call.target.shown}: ")


def _reason(call: Call, response: web.StreamResponse) -> Exception | None:
    """Return why a request may be tried again, as an error that `Retry` knows; `None` if it may not."""
    if call.failed is None or call.out is not None:
        return None
    if call.cause is not None:
        return call.cause
    if isinstance(call.failed, UnreachableError):
        return httpx.ConnectError(str(call.failed))
    is_half = isinstance(call.failed, ProtocolError) or response.status >= 500
    return ValueError(str(call.failed)) if is_half else None
