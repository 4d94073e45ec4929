"""OpenAI client whose chat completions are recorded inside a `trace` and unchanged outside it.

It is a copy of the client with another `post`, which all chat completion methods of the SDK call. They return the SDK's
own objects, and the library itself is not patched. Methods that a tracer has replaced on the client, as LangSmith's
`wrap_openai` does, are on the copy too: see `r3agent.recording.wrappers`. A LangChain model gets such copies of its
clients: see `r3agent.recording.chat_models`.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import openai

from r3agent._util.checked import checked
from r3agent.errors import ConfigError, StepLimitError
from r3agent.http.urls import ApiURL
from r3agent.policy.live import LIVE, Target
from r3agent.recording.blocks import Block, SpanScope, current, is_unrecorded, lose_call, why_none
from r3agent.recording.call import RecordedCall
from r3agent.recording.chat_models import has_clients, with_clients
from r3agent.recording.episode import Episode
from r3agent.recording.live import LiveName
from r3agent.recording.memory import Memory
from r3agent.recording.streams import observed, observed_async
from r3agent.recording.terms import GivenUpError
from r3agent.recording.wrappers import keep_wrappers
from r3agent.store.registry import Registry

if TYPE_CHECKING:
    from langchain_core.runnables import Runnable

Client = TypeVar("Client", bound="openai.AsyncOpenAI | openai.OpenAI | Runnable[Any, Any]")

UNRECORDED = ("/responses", "/completions")
"""Paths of generations that are no chat completions."""

RAW = "x-stainless-raw-response"
"""Header by which the SDK marks `with_raw_response` and `with_streaming_response`."""

SOURCE = "_r3agent_source"
"""Attribute of an instrumented client: its `Instrumented`."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of an instrumented client, and what it shares with its copies."""

    version: str | None = None
    tokens: bool = True
    purpose: str | None = None
    live: LiveName | None = None
    memory: Memory
    bound: Block | None = None
    """Block that all calls belong to; `None` for the one that they are made in."""


class Instrumented(NamedTuple):
    """Origin of an instrumented client."""

    client: Any
    """Client that it is a copy of."""
    settings: Settings


@checked
def instrument(
    client: Client,
    *,
    registry: Registry | str | Path | None = None,
    purpose: str | None = None,
    version: str | None = None,
    tokens: bool = True,
) -> Client:
    """Copy an OpenAI client, sync or async; the copy records its chat completions inside a `trace`.

    A LangChain model that is built on such clients, as `ChatOpenAI` and `AzureChatOpenAI` are, is copied with
    instrumented clients.

    A request with added fields that fails is sent again as the application wrote it, unless the error is clearly the
    application's own; what the endpoint refuses is left out from then on, for each model.

    Args:
        registry: registry or directory of the run whose live version `NAME@live` is. An episode keeps the version of
            its first request, as long as it is served; a deploy reaches the next episode, and each request outside of a
            trace. If full weights are reloaded under one name, a request during a deploy has no known version.
        purpose: purpose of all calls of a client that is not the policy's, e.g. "router"; never trained on.
        version: policy version of a served name that has none, unlike `NAME@v0007`; default: the base, v0000. If full
            weights are reloaded under one name, make a client for each version, or ask for `NAME@live`.
        tokens: request logprobs and vLLM's token ids, and the usage when streaming. The application does not see them.
            Without them spans cannot be trained on exactly.

    Raises:
        ConfigError: it is no such client or model, or one of a class that cannot be copied; or nothing is live.
    """
    live = None if registry is None else LiveName(registry)
    settings = Settings(version=version, tokens=tokens, purpose=purpose, live=live, memory=Memory())
    return _instrument(client, settings)


def bind(client: Client, episode: Episode, scope: SpanScope) -> Client:
    """Copy a client; the copy records its calls as those of `scope`, also in threads that are in no trace."""
    _, settings = vars(client).get(SOURCE, Instrumented(client, Settings(memory=Memory())))
    block = Block(episode, scope, outer=None, around=None, frame=None)
    return _instrument(client, replace(settings, bound=block))


def _instrument(client: Any, settings: Settings) -> Any:
    if isinstance(client, openai.AsyncOpenAI | openai.OpenAI):
        return _instrument_client(client, settings)
    if has_clients(client):
        return with_clients(client, lambda own: _instrument_client(own, settings))
    raise ConfigError(
        f"{type(client).__name__}: instrument() takes an openai.AsyncOpenAI or openai.OpenAI, or a LangChain model "
        "that is built on them, such as ChatOpenAI(base_url=...); if a tracer made it from one, instrument that one, "
        "and wrap the result"
    )


def _instrument_client(client: Any, settings: Settings) -> Any:
    source, _ = vars(client).get(SOURCE, (client, None))
    try:
        copied = cast(Any, source.copy())
    except TypeError as error:
        raise ConfigError(f"{type(source).__name__}: its copy() fails ({error}); pass the SDK's own class") from error
    plain_post = vars(source).get("post", copied.post)
    live, memory = settings.live, settings.memory

    def begin(path: str, body: Any, options: Mapping[str, Any]) -> tuple[RecordedCall | None, str, Any]:
        """Begin a recorded call, or return `None` with the path and body of one that is not recorded."""
        block = None if is_unrecorded() else settings.bound or current()
        target = target_of(block, body)
        try:
            call = start(block, path, body, options, target)
        except StepLimitError as error:
            terms = None if block is None or block.scope is None else block.scope.terms
            if terms is not None and terms.is_ignored:
                terms.give_up(str(error))
            raise
        except Exception as error:  # not a chat completion; leave the decision to the endpoint
            if block is not None:
                block.episode.lose(block.scope)
            memory.report_error("a chat completion is not recorded", error)
            call = None
        if call is None and target is not None:
            body = {**body, "model": target.model}
            path = path if target.base_url is None else str(ApiURL(target.base_url).route(path))
        return call, path, body

    def target_of(block: Block | None, body: Any) -> Target | None:
        """Return the version that `NAME@live` in a request is."""
        name = body.get("model") if isinstance(body, Mapping) else None
        terms = None if block is None or block.scope is None else block.scope.terms
        if not str(name).endswith(f"@{LIVE}") or (terms is not None and terms.means_policy(name)):
            return None
        if live is None:
            memory.report(str(name), "model %r: no server has it; resolve it with instrument(..., registry=RUN)", name)
            return None
        return live.target(str(name), None if block is None else block.episode)

    def start(
        block: Block | None, path: str, body: Any, options: Mapping[str, Any], target: Target | None
    ) -> RecordedCall | None:
        if path not in ("/chat/completions", *UNRECORDED) or not isinstance(body, Mapping) or is_unrecorded():
            return None
        if block is None:
            if (why := why_none()) is not None:
                lose_call()
                message = "%s in %s: a call is not recorded: %s"
                memory.report(why, message, path, threading.current_thread().name, why)
            return None
        if block.has_ended_try:
            if block.scope is not None and block.scope.terms is not None:
                block.scope.terms.give_up("the try that this call belongs to has ended", counts=True)
            block.episode.warn("a call is not recorded: its try had ended; wait for it inside of the try")
            return None
        fault = None
        if block.process_id != os.getpid():
            fault = "a call is not recorded: a forked process made it, and its memory ends with it; use threads"
        elif path in UNRECORDED:
            fault = f"{path}: a call is not recorded: only chat completions are (ChatOpenAI: use_responses_api=False)"
        elif _raw(options) == "stream":
            fault = "with_streaming_response: a call is not recorded: the application reads it; use with_raw_response"
        if fault is not None:
            block.episode.warn(fault)
            block.episode.lose(block.scope)
            return None
        return RecordedCall(
            block,
            cast(Any, body),
            options.get("extra_json") or {},
            client=copied,
            version=settings.version,
            tokens=settings.tokens,
            purpose=settings.purpose or block.purpose,
            live=live,
            target=target,
            memory=memory,
        )

    async def apost(path: str, *, body: Any = None, options: Any = None, **rest: Any) -> Any:
        options = options or {}
        try:
            call, path, body = begin(path, body, options)
        except GivenUpError as given_up:
            await asyncio.sleep(given_up.pause_s)
            raise
        if call is None:
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
        try:
            call, path, body = begin(path, body, options)
        except GivenUpError as given_up:
            time.sleep(given_up.pause_s)
            raise
        if call is None:
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

    def copy(**changes: Any) -> Any:
        return _instrument_client(source.copy(**changes), settings)

    copied.post = apost if isinstance(client, openai.AsyncOpenAI) else post
    copied.copy = copied.with_options = copy
    setattr(copied, SOURCE, Instrumented(source, settings))
    keep_wrappers(client, copied)
    return copied


def _raw(options: Mapping[str, Any]) -> str | None:
    """Return the kind of raw response that the application wants."""
    headers = options.get("headers") or {}
    return next((str(value) for name, value in dict(headers).items() if str(name).lower() == RAW), None)
