"""An OpenAI client whose chat completions are recorded inside of `trace`, and untouched outside of it.

It is a copy of the client with its `post` replaced: the SDK's every way of asking for a chat completion goes through
it, and what comes back is the SDK's own. Nothing of the library is patched.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

import openai
import orjson
from openai.types.chat import ChatCompletionChunk

from r3agent.errors import ConfigError
from r3agent.policy.parse import generations, is_constrained, refused_field
from r3agent.policy.stream import Assembly
from r3agent.recording.trace import TraceContext, current_context
from r3agent.records import versions

logger = logging.getLogger(__name__)

Client = TypeVar("Client", openai.AsyncOpenAI, openai.OpenAI)

DRAWN_BY = {
    *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "max_tokens", "max_completion_tokens"),
    *("frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias"),
    *("response_format", "tool_choice", "reasoning_effort"),
}
"""Fields of a request that are recorded with its spans; what else it holds may be anybody's."""

CUT = "the stream was left, or broke off, before the completion ended"


def instrument(client: Client, *, version: str | None = None, tokens: bool = True) -> Client:
    """A copy of an OpenAI client, sync or async, that records its chat completions inside of `trace`.

    Args:
        version: the policy version behind a served name that does not tell, as `NAME@v0007` does; default the base,
            v0000. Where full weights are reloaded under one name, make a client for each version.
        tokens: ask for logprobs and vLLM's token ids, and when streaming for the usage; what the endpoint refuses is
            left out from then on. Without them spans cannot be trained on exactly.

    Raises:
        ConfigError: it is not an OpenAI client.
    """
    if not isinstance(client, openai.AsyncOpenAI | openai.OpenAI):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"{type(client).__name__}: instrument() takes an openai.AsyncOpenAI or openai.OpenAI")
    copied = cast(Any, client.copy())
    refused: set[str] = set()
    plain = copied.post

    def begin(path: str, body: Any, options: Any) -> RecordedCall | None:
        context = current_context()
        if context is None or path != "/chat/completions" or not isinstance(body, Mapping):
            return None
        extra = (options or {}).get("extra_json") or {}
        try:
            return RecordedCall(
                context, {**body}, extra, version=version, tokens=tokens, refused=refused, secret=copied.api_key
            )
        except (TypeError, ValueError) as error:  # what JSON cannot hold, or no messages: the endpoint may know better
            logger.warning("a chat completion is not recorded: %s: %s", type(error).__name__, error)
            return None

    async def apost(path: str, *, body: Any = None, options: Any = None, **rest: Any) -> Any:
        options = options or {}
        if (call := begin(path, body, options)) is None:
            return await plain(path, body=body, options=options, **rest)
        if rest.get("stream"):
            rest["stream_cls"] = _async_stream(call)
        while True:
            try:
                answer = await plain(path, body=call.body, options=options, **rest)
            except openai.APIStatusError as error:
                if not call.drop_refused_field(error):
                    raise
            else:
                return call.take(answer)

    def post(path: str, *, body: Any = None, options: Any = None, **rest: Any) -> Any:
        options = options or {}
        if (call := begin(path, body, options)) is None:
            return plain(path, body=body, options=options, **rest)
        if rest.get("stream"):
            rest["stream_cls"] = _stream(call)
        while True:
            try:
                answer = plain(path, body=call.body, options=options, **rest)
            except openai.APIStatusError as error:
                if not call.drop_refused_field(error):
                    raise
            else:
                return call.take(answer)

    def copy(**settings: Any) -> Any:
        return instrument(client.copy(**settings), version=version, tokens=tokens)

    copied.post = apost if isinstance(client, openai.AsyncOpenAI) else post
    copied.copy = copied.with_options = copy
    return copied


class RecordedCall:
    """One request, and what becomes of it in the record. The record's troubles are logged, never the request's."""

    def __init__(
        self,
        context: TraceContext,
        body: dict[str, Any],
        extra: Mapping[str, Any],
        *,
        version: str | None,
        tokens: bool,
        refused: set[str],
        secret: Any,
    ) -> None:
        wanted: dict[str, Any] = {"logprobs": True, "return_token_ids": True} if tokens else {}
        if tokens and body.get("stream"):
            wanted["stream_options"] = {"include_usage": True}
        self._asked = [field for field in wanted if field not in {*body, *extra, *refused}]
        self.body = {**body, **{field: wanted[field] for field in self._asked}}
        self._context, self._version, self._refused = context, version, refused
        self._without: set[str] = set()
        self._start = time.perf_counter()
        self._assembly: Assembly | None = Assembly()
        self._request = {**body, **extra}
        # As sent, and as it was then: the application may go on with the same list.
        sent = orjson.loads(orjson.dumps([body.get("messages"), self._request.get("tools") or []], default=_as_json))
        self._messages, self._tools = sent
        context.episode.begin(self._messages, self._tools, secret if isinstance(secret, str) else "")
        if body.get("stream"):
            context.episode.at_end(self.finish)

    def drop_refused_field(self, error: openai.APIStatusError) -> bool:
        """Whether the refusal names a field that only the record wanted; it is left out then."""
        named = refused_field(str(error), self._asked) if error.status_code in (400, 422) else None
        if named is None:
            return False
        self._asked.remove(named)
        del self.body[named]
        self._without.add(named)
        return True

    def take(self, answer: Any) -> Any:
        """Record an answer, unless it is a stream, which is recorded as it is read."""
        self._refused |= self._without  # remembered once going without has helped
        if not self.body.get("stream"):
            self._record(lambda: _json_of(answer))
        return answer

    def add(self, chunk: ChatCompletionChunk) -> bool:
        """Take in one chunk; false: it is only there because the record asked for the usage."""
        if self._assembly is not None:
            try:
                for _ in self._assembly.add(chunk.to_dict(mode="python", warnings=False)):
                    pass
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                self._assembly = None
                logger.warning("a stream is not recorded: %s: %s", type(error).__name__, error)
        return not ("stream_options" in self._asked and not chunk.choices and chunk.usage is not None)

    def finish(self) -> None:
        """The stream is over, or will not be read any further."""
        assembly, self._assembly = self._assembly, None
        if assembly is not None and assembly.body["choices"]:
            self._record(lambda: assembly.body)

    def _record(self, answer_of: Callable[[], Any]) -> None:
        try:
            answer = answer_of()
            answered = answer.get("model") or self.body["model"]
            common = {
                "model": answered,
                "policy_version": versions.served_version(answered) or self._version or versions.BASE,
                "sampling": {key: self._request[key] for key in sorted(DRAWN_BY & self._request.keys())},
                "latency_s": round(time.perf_counter() - self._start, 4),
            }
            choices = answer["choices"]
            sampled = generations(answer, common, len(choices), constrained=is_constrained(self._request))
            if any(choice.get("finish_reason") is None for choice in choices):
                cut = {"capability": "eval-only", "capability_note": CUT, "logprobs": None}
                sampled = [generation.model_copy(update=cut) for generation in sampled]
            if not self._context.episode.closed:
                self._context.episode.add(sampled, self._context.scope, self._messages, self._tools)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            logger.warning("a chat completion is not recorded: %s: %s", type(error).__name__, error)


def _json_of(answer: Any) -> Any:
    """Of the SDK's model, or of its raw response (`with_raw_response`)."""
    if isinstance(content := getattr(answer, "content", None), bytes):
        return orjson.loads(content)
    return answer.to_dict(mode="python", warnings=False)


def _as_json(value: Any) -> Any:
    return value.to_dict(warnings=False) if isinstance(value, openai.BaseModel) else str(value)


def _async_stream(call: RecordedCall) -> type[openai.AsyncStream[ChatCompletionChunk]]:
    class Observed(openai.AsyncStream[ChatCompletionChunk]):
        async def __anext__(self) -> ChatCompletionChunk:
            while True:
                try:
                    chunk = await super().__anext__()
                except StopAsyncIteration:
                    call.finish()
                    raise
                if call.add(chunk):
                    return chunk

        async def __aiter__(self) -> AsyncIterator[ChatCompletionChunk]:
            async for chunk in super().__aiter__():
                if call.add(chunk):
                    yield chunk
            call.finish()

    return Observed


def _stream(call: RecordedCall) -> type[openai.Stream[ChatCompletionChunk]]:
    class Observed(openai.Stream[ChatCompletionChunk]):
        def __next__(self) -> ChatCompletionChunk:
            while True:
                try:
                    chunk = super().__next__()
                except StopIteration:
                    call.finish()
                    raise
                if call.add(chunk):
                    return chunk

        def __iter__(self) -> Iterator[ChatCompletionChunk]:
            for chunk in super().__iter__():
                if call.add(chunk):
                    yield chunk
            call.finish()

    return Observed
