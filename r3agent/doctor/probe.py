"""Requests of the doctor: sent once, with a time limit, and with a result instead of an exception."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import httpx
import orjson

from r3agent.errors import EndpointError, PolicyError, ProtocolError
from r3agent.http import client as http
from r3agent.http.errors import NO_KEY, ServerError, no_answer, policy_error, read_error
from r3agent.http.negotiation import Terms, negotiate
from r3agent.http.urls import ApiURL, redact_url
from r3agent.policy import Sampling
from r3agent.policy.parse import NOT_A_COMPLETION, generations, not_a_completion, read_logprobs
from r3agent.policy.stream import Assembly, read_body
from r3agent.records import versions
from r3agent.records.trajectory import Capability, Generation, Message

MESSAGES: list[Message] = [{"role": "user", "content": "Say hello."}]
MAX_TOKENS = 16
ROUTE_TIMEOUT_S = 10.0
"""Timeout of all requests except completions, in seconds."""

WORST_FIRST: tuple[Capability, ...] = ("eval-only", "trainable-retokenised", "trainable-exact")


class RouteReply(NamedTuple):
    """Response of one route."""

    status: int | None
    """HTTP status; `None` without a response."""
    body: Any
    """Parsed JSON; `None` if it is not JSON."""
    message: str
    """Message of the server, or the reason why there was no response."""

    def __str__(self) -> str:
        return self.message if self.status is None else f"HTTP {self.status}: {self.message}"


class Completion(NamedTuple):
    """Chat completion, as JSON and as generations."""

    body: dict[str, Any]
    generations: list[Generation]
    latency_s: float

    @property
    def worst(self) -> Generation:
        return min(self.generations, key=lambda generation: WORST_FIRST.index(generation.capability))

    @property
    def is_empty(self) -> bool:
        """Return True if a choice has neither tokens nor text, and so proves nothing."""
        return any(not (g.token_ids or g.text or g.reasoning or g.tool_calls) for g in self.generations)

    @property
    def lengths(self) -> str:
        """Text with the numbers of token ids, logprobs and usage tokens, which must be equal."""
        choices = self.body["choices"]
        ids = sum(len(choice.get("token_ids") or ()) for choice in choices)
        logprobs = sum(len(read_logprobs(choice.get("logprobs"))[0] or ()) for choice in choices)
        usage_tokens = "nothing" if self.usage_tokens is None else self.usage_tokens
        return f"{ids} token ids, {logprobs} logprobs, usage says {usage_tokens}"

    @property
    def usage_tokens(self) -> int | None:
        """Tokens of all choices, by `usage.completion_tokens`."""
        usage = self.body.get("usage")
        tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
        return tokens if isinstance(tokens, int) else None


def candidates(url: str) -> tuple[str, ...]:
    """List the base URLs to try for a URL with or without /v1.

    Raises:
        ConfigError: it is not an HTTP URL.
    """
    base = ApiURL(url.strip(), setting="url")
    return (str(base.route("")),) if base.is_versioned else (str(base.route("/v1")), str(base.route("")).rstrip("/"))


class EndpointProbe:
    """Client that probes one base URL.

    Args:
        api_key: key for every request, never shown.
        headers: further headers of every request, never shown.
        proxy, verify: as in `OpenAIPolicy`.
        timeout_s: timeout of one completion, in seconds.

    Raises:
        ConfigError: the key is not valid in an HTTP header.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
        proxy: str | None = None,
        verify: bool | str = True,
    ) -> None:
        self._url = ApiURL(base_url)
        self.base_url = redact_url(base_url)
        self.root = self._url.root
        self._settings = http.ClientSettings(
            timeout_s=timeout_s, api_key=api_key or NO_KEY, headers=headers, proxy=proxy, verify=verify
        )
        self._route_timeout_s = min(ROUTE_TIMEOUT_S, timeout_s)
        self._client = self._settings.open_async()
        self._terms = Terms(self.base_url)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def call(self, path: str, body: Any = None, *, of_server: bool = False) -> RouteReply:
        """GET a route of the API, or POST a body to it.

        Args:
            of_server: the route is outside the API, like `/health`.
        """
        url = self._url.server_route(path) if of_server else self._url.route(path)
        try:
            async with asyncio.timeout(self._route_timeout_s):
                response = await http.send(self._client, "GET" if body is None else "POST", url, body)
        except (httpx.RequestError, TimeoutError) as error:
            return RouteReply(None, None, no_answer(error, self._route_timeout_s))
        try:
            content = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            content = None
        return RouteReply(response.status_code, content, read_error(response).brief)

    async def chat(
        self,
        model: str,
        *,
        n: int = 1,
        stream: bool = False,
        may_drop: Collection[str] = (),
        terms: Terms | None = None,
        **fields: Any,
    ) -> Completion | PolicyError:
        """Sample a few tokens; return an error instead of raising it. A field that is `None` is not sent.

        Args:
            may_drop: those of `fields` that are left out if the endpoint refuses them, besides r3agent's own settings.
            terms: refused fields, to which those of this request are added; default: the ones of all requests.
        """
        fields |= {"n": n} if n > 1 else {}
        fields |= {"stream": True} if stream else {}
        body = {"model": model, "messages": MESSAGES, **Sampling(max_tokens=MAX_TOKENS).body(), **fields}
        body |= {"stream_options": {"include_usage": True}} if stream else {}
        body = {field: value for field, value in body.items() if value is not None}
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                keep = fields.keys() - {*may_drop}
                return await negotiate(terms or self._terms, body, lambda sent: self._complete(sent, n), keep=keep)
        except (httpx.RequestError, TimeoutError) as error:
            return EndpointError(no_answer(error, self._settings.timeout_s))
        except PolicyError as error:
            return error

    async def _complete(self, body: dict[str, Any], n: int) -> Completion:
        url, start, content = self._url.route("/chat/completions"), time.perf_counter(), b""
        try:
            if body.get("stream"):
                chunks: list[Any] = []
                await http.stream(self._client, url, body, chunks.append)
                answer = _assembled(chunks)
            else:
                content, parsed = await http.fetch(self._client, "POST", url, body)
                answer = read_body(content, parsed)
            common = {"model": body["model"], "policy_version": versions.BASE}
            return Completion(answer, generations(answer, common, n), time.perf_counter() - start)
        except ServerError as error:
            raise policy_error(error) from None
        except NOT_A_COMPLETION as error:
            raise ProtocolError(
                not_a_completion(error, content, lambda text: self._settings.redact(text, url))
            ) from None


def _assembled(chunks: Sequence[Any]) -> dict[str, Any]:
    """Assemble the chunks of a stream.

    Raises:
        ProtocolError: there are none, or the only one is a whole completion.
    """
    assembly = Assembly()
    for chunk in chunks:
        assembly.take(chunk)
    if len(chunks) < 2 and not any("delta" in choice for chunk in chunks for choice in chunk.get("choices") or ()):
        raise ProtocolError("no stream came: the server ignores `stream`, or does not send events")
    return assembly.body
