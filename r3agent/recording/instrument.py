"""OpenAI client whose chat completions are recorded inside a `trace` and unchanged outside it.

It is a copy of the client with another `post`, which all chat completion methods of the SDK call. They return the SDK's
own objects, and the library itself is not patched.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

import openai
import orjson
from openai.types.chat import ChatCompletionChunk

from r3agent.errors import ConfigError
from r3agent.http.body import read_text
from r3agent.http.refusal import refused_fields
from r3agent.policy.parse import generations
from r3agent.policy.stream import Assembly
from r3agent.recording.blocks import Block, current, why_none
from r3agent.recording.trace import Episode
from r3agent.records import versions

logger = logging.getLogger(__name__)

Client = TypeVar("Client", openai.AsyncOpenAI, openai.OpenAI)

SAMPLING_FIELDS = {
    *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "max_tokens", "max_completion_tokens"),
    *("frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias"),
    *("response_format", "tool_choice", "reasoning_effort"),
}
"""Request fields that are recorded with the spans; others may contain private data."""

UNRECORDED = ("/responses", "/completions")
"""Paths of generations that are no chat completions."""

CUT = "the stream was left, or broke off, before the completion ended"


def instrument(client: Client, *, version: str | None = None, tokens: bool = True) -> Client:
    """Copy an OpenAI client, sync or async; the copy records its chat completions inside a `trace`.

    Args:
        version: policy version of a served name that has none, unlike `NAME@v0007`; default: the base, v0000. If full
            weights are reloaded under one name, make a client for each version.
        tokens: request logprobs and vLLM's token ids, and the usage when streaming; fields that the endpoint refuses
            are left out from then on. Without them spans cannot be trained on exactly.

    Raises:
        ConfigError: it is not an OpenAI client.
    """
    if not isinstance(client, openai.AsyncOpenAI | openai.OpenAI):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"{type(client).__name__}: instrument() takes an openai.AsyncOpenAI or openai.OpenAI")
    copied = cast(Any, client.copy())
    refused: set[str] = set()
    warned: set[str] = set()
    plain_post = copied.post

    def begin(path: str, body: Any, options: Any) -> RecordedCall | None:
        if path not in ("/chat/completions", *UNRECORDED) or not isinstance(body, Mapping):
            return None
        if (block := current()) is None:
            if (why := why_none()) is not None and why not in warned:
                warned.add(why)
                logger.warning("%s in %s: a call is not recorded: %s", path, threading.current_thread().name, why)
            return None
        if path in UNRECORDED:
            block.episode.warn(f"{path}: a call is not recorded: only chat completions are")
            return None
        extra = options.get("extra_json") or {}
        try:
            return RecordedCall(
                block, {**body}, extra, version=version, tokens=tokens, refused=refused, key=copied.api_key
            )
        except (TypeError, ValueError) as error:  # not JSON, or no messages: leave the decision to the endpoint
            logger.warning("a chat completion is not recorded: %s: %s", type(error).__name__, error)
            return None

    async def apost(path: str, *, body: Any = None, options: Any = None, **rest: Any) -> Any:
        options = options or {}
        if (call := begin(path, body, options)) is None:
            return await plain_post(path, body=body, options=options, **rest)
        if rest.get("stream"):
            rest["stream_cls"] = _async_stream(call)
        while True:
            try:
                return call.take(await plain_post(path, body=call.body, options=options, **rest))
            except openai.APIStatusError as error:
                call.leave_out_refused_fields(error)

    def post(path: str, *, body: Any = None, options: Any = None, **rest: Any) -> Any:
        options = options or {}
        if (call := begin(path, body, options)) is None:
            return plain_post(path, body=body, options=options, **rest)
        if rest.get("stream"):
            rest["stream_cls"] = _stream(call)
        while True:
            try:
                return call.take(plain_post(path, body=call.body, options=options, **rest))
            except openai.APIStatusError as error:
                call.leave_out_refused_fields(error)

    def copy(**settings: Any) -> Any:
        return instrument(client.copy(**settings), version=version, tokens=tokens)

    copied.post = apost if isinstance(client, openai.AsyncOpenAI) else post
    copied.copy = copied.with_options = copy
    return copied


class RecordedCall:
    """One request and its record; if recording fails, the failure is logged and the request continues."""

    def __init__(
        self,
        block: Block,
        body: dict[str, Any],
        extra: Mapping[str, Any],
        *,
        version: str | None,
        tokens: bool,
        refused: set[str],
        key: Any,
    ) -> None:
        added: dict[str, Any] = {"logprobs": True, "return_token_ids": True} if tokens else {}
        if tokens and body.get("stream"):
            added["stream_options"] = {"include_usage": True}
        self._added = [field for field in added if field not in {*body, *extra, *refused}]
        self.body = {**body, **{field: added[field] for field in self._added}}
        self._episode: Episode = block.episode
        self._scope, self._version, self._refused = block.scope, version, refused
        self._left_out: set[str] = set()
        self._start = time.perf_counter()
        self._assembly: Assembly | None = Assembly()
        self._request = {**body, **extra}
        # Copy the messages as sent: the application may modify its list afterwards.
        sent = orjson.loads(orjson.dumps([body.get("messages"), self._request.get("tools") or []], default=_as_json))
        self._messages, self._tools = sent
        self._episode.begin(self._messages, self._tools, key if isinstance(key, str) else "")
        if body.get("stream"):
            self._episode.at_end(self.finish)

    def leave_out_refused_fields(self, error: openai.APIStatusError) -> None:
        """Leave out fields that the endpoint refuses, if they were added for the record; otherwise raise the error."""
        refusal = read_text(error.response.text)
        refused = refused_fields(error.status_code, refusal.message, self._added, param=refusal.param)
        if not refused:
            raise error
        self._added = [field for field in self._added if field not in refused]
        self.body = {field: value for field, value in self.body.items() if field not in refused}
        self._left_out |= refused

    def take(self, answer: Any) -> Any:
        """Record a response, unless it is a stream, which is recorded while it is read."""
        self._refused |= self._left_out  # remember the fields once a request without them has succeeded
        if not self.body.get("stream"):
            self._record(lambda: _json_of(answer))
        return answer

    def add(self, chunk: ChatCompletionChunk) -> bool:
        """Record one chunk; return False for the usage chunk that only the record requested."""
        if self._episode.closed:
            self._episode.warn("a stream was read after its trace had ended: the record has what was read before")
        if self._assembly is not None:
            try:
                for _ in self._assembly.add(chunk.to_dict(mode="python", warnings=False)):
                    pass
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                self._assembly = None
                logger.warning("a stream is not recorded: %s: %s", type(error).__name__, error)
        return not ("stream_options" in self._added and not chunk.choices and chunk.usage is not None)

    def finish(self) -> None:
        """Record a stream that has ended, or will not be read to its end."""
        assembly, self._assembly = self._assembly, None
        if assembly is not None and assembly.body["choices"]:
            self._record(lambda: assembly.body)
        elif assembly is not None:
            self._episode.warn("a stream is not recorded: nothing of it was read inside of its trace")

    def _record(self, answer_of: Callable[[], Any]) -> None:
        try:
            answer = answer_of()
            answered = answer.get("model") or self.body["model"]
            common = {
                "model": answered,
                "policy_version": versions.served_version(answered) or self._version or versions.BASE,
                "sampling": {key: self._request[key] for key in sorted(SAMPLING_FIELDS & self._request.keys())},
                "latency_s": round(time.perf_counter() - self._start, 4),
            }
            choices = answer["choices"]
            sampled = generations(answer, common, len(choices), self._request)
            if any(choice.get("finish_reason") is None for choice in choices):
                cut = {"capability": "eval-only", "capability_note": CUT, "logprobs": None}
                sampled = [generation.model_copy(update=cut) for generation in sampled]
            if self._episode.closed:
                self._episode.warn("an answer is not recorded: it came after the trace had ended")
            else:
                self._episode.add(sampled, self._scope, self._messages, self._tools)
        except Exception as error:  # the application has its answer whatever happens here
            logger.warning("a chat completion is not recorded: %s: %s", type(error).__name__, error)


def _json_of(answer: Any) -> Any:
    """Return the JSON of an SDK model, or of a raw response (`with_raw_response`)."""
    if isinstance(content := getattr(answer, "content", None), bytes):
        return orjson.loads(content)
    if not isinstance(answer, openai.BaseModel):
        raise TypeError(f"{type(answer).__name__} is read by the application; use with_raw_response")
    return answer.to_dict(mode="python", warnings=False)


def _as_json(value: Any) -> Any:
    return value.to_dict(warnings=False) if isinstance(value, openai.BaseModel) else str(value)


def _async_stream(call: RecordedCall) -> type[openai.AsyncStream[ChatCompletionChunk]]:
    class Observed(openai.AsyncStream[ChatCompletionChunk]):
        async def __stream__(self) -> AsyncIterator[ChatCompletionChunk]:
            async for chunk in super().__stream__():
                if call.add(chunk):
                    yield chunk
            call.finish()

    return Observed


def _stream(call: RecordedCall) -> type[openai.Stream[ChatCompletionChunk]]:
    class Observed(openai.Stream[ChatCompletionChunk]):
        def __stream__(self) -> Iterator[ChatCompletionChunk]:
            yield from filter(call.add, super().__stream__())
            call.finish()

    return Observed
