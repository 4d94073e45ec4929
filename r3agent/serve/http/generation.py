"""Handlers of POST /v1/chat/completions and /v1/completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from r3agent.serve.engine.engine import Engine
from r3agent.serve.engine.lora import Adapter
from r3agent.serve.engine.request import Chunk, Event, GenerationRequest
from r3agent.serve.engine.text import Detokenizer
from r3agent.serve.errors import APIError, json_response, server_error
from r3agent.serve.http.prompts import chat_prompt, completion_prompt
from r3agent.serve.http.protocol import ChatCompletionRequest, CompletionRequest, SamplingFields, parse
from r3agent.serve.http.responses import Responses
from r3agent.serve.http.tool_calls import calls_tools

CLIENT_LEFT = Response(status_code=499)
"""Response for a client that has disconnected."""


class GenerationRoutes:
    """Handlers that convert HTTP requests to the engine's requests, and its events to response bodies."""

    def __init__(self, engine: Engine, resolve: Callable[[str | None], tuple[str, Adapter | None]]) -> None:
        self._engine = engine
        self._resolve = resolve
        """Function from a requested model name to the response's model name and the adapter."""
        self._served = engine.served
        self._detokenizer = Detokenizer(engine.served.tokenizer)

    async def chat(self, http: Request) -> Response:
        body = parse(ChatCompletionRequest, await http.body())
        if body.top_logprobs and not body.logprobs:
            raise APIError("when using `top_logprobs`, `logprobs` must be set to true.", param="top_logprobs")
        model, adapter = self._resolve(body.model)
        limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        request = self._request(body, chat_prompt(self._served, body), limit, adapter, body.top_logprobs)
        responses = Responses(
            request,
            model,
            self._detokenizer,
            body.return_token_ids,
            body.logprobs,
            read_calls=calls_tools(self._served, body),
        )
        if body.stream:
            usage = body.stream_options is not None and body.stream_options.include_usage
            return EventStream(self._stream(self._events(request), responses, usage), lambda: self._cancel(request))
        return json_response(responses.chat()) if await self._wait_until_finished(request, http) else CLIENT_LEFT

    async def completion(self, http: Request) -> Response:
        body = parse(CompletionRequest, await http.body())
        if body.stream:
            raise APIError("stream = True: only chat completions are streamed", param="stream")
        model, adapter = self._resolve(body.model)
        prompt = completion_prompt(self._served, body)
        request = self._request(body, prompt, body.max_tokens, adapter, body.logprobs or 0)
        request.prompt_logprobs = body.prompt_logprobs
        responses = Responses(request, model, self._detokenizer, body.return_token_ids, body.logprobs is not None)
        return json_response(responses.completion()) if await self._wait_until_finished(request, http) else CLIENT_LEFT

    def _request(
        self,
        body: SamplingFields,
        prompt_token_ids: Sequence[int],
        max_tokens: int | None,
        adapter: Adapter | None,
        top_logprobs: int,
    ) -> GenerationRequest:
        """Make the engine's request.

        Raises:
            APIError: it requests more tokens than the model's maximum length, or tokens outside the vocabulary.
        """
        if body.stream_options is not None and not body.stream:
            raise APIError("Stream options can only be defined when `stream=True`.", param="stream_options")
        longest = self._served.max_model_len
        if max_tokens is not None and max_tokens > longest:
            raise APIError(
                f"max_tokens={max_tokens} cannot be greater than max_model_len={longest}. Please request fewer output "
                "tokens.",
                param="max_tokens",
            )
        allowed = frozenset(body.allowed_token_ids or ())
        if allowed and max(allowed) >= (size := self._served.vocab_size):
            raise APIError(
                f"allowed_token_ids contains {max(allowed)}, which is out of the vocabulary of {size} tokens.",
                param="allowed_token_ids",
            )
        room = longest - len(prompt_token_ids)
        return GenerationRequest(
            prompt_token_ids=prompt_token_ids,
            max_tokens=room if max_tokens is None else min(max_tokens, room),
            n=body.n,
            temperature=body.temperature,
            top_p=body.top_p,
            seed=body.seed,
            stop=body.stop,
            stop_token_ids=frozenset() if body.ignore_eos else self._served.stop_token_ids,
            eos_token_id=self._served.eos_token_id,
            allowed_token_ids=allowed,
            top_logprobs=top_logprobs,
            adapter=adapter,
            stream=body.stream,
        )

    def _events(self, request: GenerationRequest) -> asyncio.Queue[Event]:
        """Submit a request; its events arrive in the queue."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()
        request.on_event = lambda event: loop.call_soon_threadsafe(events.put_nowait, event)
        self._engine.submit(request)
        return events

    async def _wait_until_finished(self, request: GenerationRequest, http: Request) -> bool:
        """Submit a request and wait for its last event; if the client disconnects, cancel it and return False."""
        end = asyncio.ensure_future(self._events(request).get())
        left = asyncio.ensure_future(_wait_for_disconnect(http))
        try:
            await asyncio.wait({end, left}, return_when=asyncio.FIRST_COMPLETED)
            if end.done() and isinstance(event := end.result(), BaseException):
                raise server_error(event)
            return end.done()
        finally:
            left.cancel()
            if not end.done():
                end.cancel()
                self._engine.cancel(request)

    async def _stream(self, events: asyncio.Queue[Event], responses: Responses, usage: bool) -> AsyncIterator[bytes]:
        """Yield server-sent events: the start of each choice, its tokens, the usage; merge chunks if it is behind."""
        bodies = list(responses.chat_starts())
        while isinstance(event := await events.get(), Chunk):
            bodies.append(responses.chat_delta(event))
            if events.empty():
                yield b"".join(map(_sse, bodies))
                bodies.clear()
        if event is not None:
            bodies.append(server_error(event).body())
        elif usage:
            bodies.append(responses.chat_usage())
        yield b"".join(map(_sse, bodies)) + b"data: [DONE]\n\n"

    def _cancel(self, request: GenerationRequest) -> None:
        if not request.is_finished:
            self._engine.cancel(request)


class EventStream(StreamingResponse):
    """Stream of server-sent events that calls `on_close` when it ends or the client disconnects."""

    def __init__(self, content: AsyncIterator[bytes], on_close: Callable[[], None]) -> None:
        super().__init__(content, media_type="text/event-stream")
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_close()


async def _wait_for_disconnect(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _sse(body: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"
