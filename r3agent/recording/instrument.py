"""OpenAI client whose chat completions are recorded inside a `trace` and unchanged outside it.

It is a copy of the client with another `post`, which all chat completion methods of the SDK call. They return the SDK's
own objects, and the library itself is not patched. Methods that a tracer has replaced on the client, as LangSmith's
`wrap_openai` does, are on the copy too: see `r3agent.recording.wrappers`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, TypeVar, cast

import openai

from r3agent.errors import ConfigError, StepLimitError
from r3agent.recording.blocks import Block, SpanScope, current, lose_call, why_none
from r3agent.recording.call import RecordedCall
from r3agent.recording.episode import Episode
from r3agent.recording.exchange import Memory
from r3agent.recording.streams import observed, observed_async
from r3agent.recording.wrappers import keep_wrappers

Client = TypeVar("Client", openai.AsyncOpenAI, openai.OpenAI)

UNRECORDED = ("/responses", "/completions")
"""Paths of generations that are no chat completions."""

RAW = "x-stainless-raw-response"
"""Header by which the SDK marks `with_raw_response` and `with_streaming_response`."""

SOURCE = "_r3agent_source"
"""Attribute of an instrumented client: the client that it is a copy of, and the arguments of `_instrument`."""


def instrument(client: Client, *, version: str | None = None, tokens: bool = True) -> Client:
    """Copy an OpenAI client, sync or async; the copy records its chat completions inside a `trace`.

    A request with added fields that fails is sent again as the application wrote it, unless the error is clearly the
    application's own; what the endpoint refuses is left out from then on, for each model.

    Args:
        version: policy version of a served name that has none, unlike `NAME@v0007`; default: the base, v0000. If full
            weights are reloaded under one name, make a client for each version.
        tokens: request logprobs and vLLM's token ids, and the usage when streaming. The application does not see them.
            Without them spans cannot be trained on exactly.

    Raises:
        ConfigError: it is not an OpenAI client, or one of a class that cannot be copied.
    """
    if not isinstance(client, openai.AsyncOpenAI | openai.OpenAI):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(
            f"{type(client).__name__}: instrument() takes an openai.AsyncOpenAI or openai.OpenAI; if a tracer made it "
            "from one, instrument that one, and wrap the result"
        )
    return _instrument(client, version, tokens, Memory())


def bind(client: Client, episode: Episode, scope: SpanScope) -> Client:
    """Copy a client; the copy records its calls as those of `scope`, also in threads that are in no trace."""
    _, version, tokens, memory = vars(client).get(SOURCE, (client, None, True, Memory()))
    return _instrument(client, version, tokens, memory, Block(episode, scope, outer=None, around=None, frame=None))


def _instrument(client: Any, version: str | None, tokens: bool, memory: Memory, bound: Block | None = None) -> Any:
    source, *_ = vars(client).get(SOURCE, (client,))
    try:
        copied = cast(Any, source.copy())
    except TypeError as error:
        raise ConfigError(f"{type(source).__name__}: its copy() fails ({error}); pass the SDK's own class") from error
    plain_post = vars(source).get("post", copied.post)

    def begin(path: str, body: Any, options: Mapping[str, Any]) -> RecordedCall | None:
        try:
            return start(path, body, options)
        except StepLimitError:
            raise
        except Exception as error:  # not a chat completion; leave the decision to the endpoint
            if (block := bound or current()) is not None:
                block.episode.lose(block.scope)
            memory.report_error("a chat completion is not recorded", error)
            return None

    def start(path: str, body: Any, options: Mapping[str, Any]) -> RecordedCall | None:
        if path not in ("/chat/completions", *UNRECORDED) or not isinstance(body, Mapping):
            return None
        if (block := bound or current()) is None:
            if (why := why_none()) is not None:
                lose_call()
                message = "%s in %s: a call is not recorded: %s"
                memory.report(why, message, path, threading.current_thread().name, why)
            return None
        if block.scope is not None and block.scope.ended:
            block.episode.warn("a call is not recorded: its try had ended; wait for it inside of the try")
            return None
        fault = None
        if path in UNRECORDED:
            fault = f"{path}: a call is not recorded: only chat completions are"
        elif _raw(options) == "stream":
            fault = "with_streaming_response: a call is not recorded: the application reads it; use with_raw_response"
        if fault is not None:
            block.episode.warn(fault)
            block.episode.lose(block.scope)
            return None
        extra = options.get("extra_json") or {}
        return RecordedCall(block, cast(Any, body), extra, client=copied, version=version, tokens=tokens, memory=memory)

    async def apost(path: str, *, body: Any = None, options: Any = None, **rest: Any) -> Any:
        options = options or {}
        if (call := begin(path, body, options)) is None:
            return await plain_post(path, body=body, options=options, **rest)

        async def send() -> Any:
            return await plain_post(call.url(path), body=call.body, options=call.options(options), **rest)

        if rest.get("stream"):
            rest["stream_cls"] = observed_async(call, None if _raw(options) else send)
        while True:
            try:
                answer = await send()
            except Exception as error:
                if not call.forgives(error):
                    call.fail_with(error)
                    raise
            else:
                if not call.refuses(answer):
                    return call.take(answer)

    def post(path: str, *, body: Any = None, options: Any = None, **rest: Any) -> Any:
        options = options or {}
        if (call := begin(path, body, options)) is None:
            return plain_post(path, body=body, options=options, **rest)

        def send() -> Any:
            return plain_post(call.url(path), body=call.body, options=call.options(options), **rest)

        if rest.get("stream"):
            rest["stream_cls"] = observed(call, None if _raw(options) else send)
        while True:
            try:
                answer = send()
            except Exception as error:
                if not call.forgives(error):
                    call.fail_with(error)
                    raise
            else:
                if not call.refuses(answer):
                    return call.take(answer)

    def copy(**settings: Any) -> Any:
        return _instrument(source.copy(**settings), version, tokens, memory, bound)

    copied.post = apost if isinstance(client, openai.AsyncOpenAI) else post
    copied.copy = copied.with_options = copy
    setattr(copied, SOURCE, (source, version, tokens, memory))
    keep_wrappers(client, copied)
    return copied


def _raw(options: Mapping[str, Any]) -> str | None:
    """Return the kind of raw response that the application wants."""
    headers = options.get("headers") or {}
    return next((str(value) for name, value in dict(headers).items() if str(name).lower() == RAW), None)
