"""The doctor's requests: each tried once, bounded in time, answered with what came instead of an exception."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import httpx
import orjson

from r3agent._util.urls import redact_url
from r3agent.errors import ConfigError, EndpointError, PolicyError, ProtocolError
from r3agent.policy.endpoint import CONNECT_TIMEOUT_S, Endpoint
from r3agent.policy.openai import Sampling
from r3agent.policy.parse import generations
from r3agent.policy.stream import Assembly
from r3agent.records import versions
from r3agent.records.trajectory import Capability, Generation, Message

MESSAGES: list[Message] = [{"role": "user", "content": "Say hello."}]
MAX_TOKENS = 16
ROUTE_TIMEOUT_S = 10.0
"""For everything but completions."""

WORST_FIRST: tuple[Capability, ...] = ("eval-only", "trainable-retokenised", "trainable-exact")


class Reply(NamedTuple):
    """What a route said."""

    status: int | None
    """`None`: nothing came."""
    body: Any
    """`None` where it is not JSON."""
    said: str
    """The server's own words, or why nothing came."""

    def __str__(self) -> str:
        return self.said if self.status is None else f"HTTP {self.status}: {self.said}"


class Completion(NamedTuple):
    """A chat completion, as the JSON it came as and as the generations it is recorded as."""

    body: dict[str, Any]
    generations: list[Generation]
    latency_s: float

    @property
    def worst(self) -> Generation:
        return min(self.generations, key=lambda generation: WORST_FIRST.index(generation.capability))

    @property
    def is_empty(self) -> bool:
        """Some choice has neither tokens nor text: nothing can be said of its kind."""
        return any(not (g.token_ids or g.text or g.reasoning or g.tool_calls) for g in self.generations)

    @property
    def lengths(self) -> str:
        """The numbers that must be equal."""
        choices = self.body["choices"]
        ids = sum(len(choice.get("token_ids") or ()) for choice in choices)
        logprobs = sum(len((choice.get("logprobs") or {}).get("content") or ()) for choice in choices)
        counted = "nothing" if self.counted is None else self.counted
        return f"{ids} token ids, {logprobs} logprobs, usage says {counted}"

    @property
    def counted(self) -> int | None:
        """`usage.completion_tokens`, of all choices."""
        return (self.body.get("usage") or {}).get("completion_tokens")


def candidates(url: str) -> tuple[str, ...]:
    """The base URLs that an address may mean.

    Raises:
        ConfigError: it is no HTTP address.
    """
    try:
        given = httpx.URL(url.strip().rstrip("/")).copy_with(query=None, fragment=None)
    except httpx.InvalidURL as error:
        raise ConfigError(f"url = {redact_url(url)!r}: {error}; e.g. http://127.0.0.1:8000/v1") from None
    if given.scheme not in ("http", "https") or not given.host or not 0 < (given.port or 80) < 2**16:
        raise ConfigError(f"url = {redact_url(url)!r}: it must look like http://127.0.0.1:8000/v1")
    base = str(given).rstrip("/")
    return (base,) if base.endswith("/v1") else (f"{base}/v1", base)


class Wire:
    """One base URL.

    Args:
        api_key: sent with every request, never shown.
        timeout_s: for one completion.

    Raises:
        ConfigError: no HTTP header can carry the key.
    """

    def __init__(self, base_url: str, *, api_key: str | None, timeout_s: float) -> None:
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise ConfigError("the API key has characters that no HTTP header can carry; was it copied whole?")
        self.base_url = base_url
        self.root = base_url.removesuffix("/v1")
        """Where the routes are that are not OpenAI's."""
        self._api_key = api_key
        self._timeout_s = timeout_s
        key = api_key or "EMPTY"  # as `OpenAIPolicy` does
        self._endpoint = Endpoint(base_url, api_key=key, concurrency=16, timeout_s=timeout_s, outage_s=0, max_tries=1)
        self._route_timeout_s = min(ROUTE_TIMEOUT_S, timeout_s)
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(self._route_timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s)),
        )

    async def aclose(self) -> None:
        await self._client.aclose()
        await self._endpoint.aclose()

    async def call(self, method: str, url: str, json: Any = None) -> Reply:
        """One request to any route."""
        try:
            async with asyncio.timeout(self._route_timeout_s):
                response = await self._client.request(method, url, json=json)
        except (httpx.TimeoutException, TimeoutError):
            return Reply(None, None, f"no answer within {self._route_timeout_s:g} s")
        except (httpx.HTTPError, ValueError, OSError) as error:  # a host that cannot be encoded is a ValueError
            return Reply(None, None, self._without_key(str(error)) or type(error).__name__)
        try:
            body = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            body = None
        return Reply(response.status_code, body, self._without_key(_said(response, body)))

    async def chat(self, model: str, *, n: int = 1, stream: bool = False, **fields: Any) -> Completion | PolicyError:
        """A few tokens; an error is returned, without the address and the model in front."""
        body = {"model": model, "messages": MESSAGES, **Sampling(max_tokens=MAX_TOKENS).body(), **fields}
        body |= {"n": n} if n > 1 else {}
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._completion(body, n, stream)
        except PolicyError as error:
            said = str(error).removeprefix(f"{redact_url(self.base_url)}, model {model!r}: ")
            return type(error)(self._without_key(said.replace(" (tried 1 times)", "")))
        except TimeoutError:
            return EndpointError(f"no answer within {self._timeout_s:g} s")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            return ProtocolError(f"the answer is not a chat completion ({type(error).__name__}: {error})")
        except httpx.HTTPError as error:  # openai 2 does not map what breaks a stream off
            return EndpointError(f"broke off: {error or type(error).__name__}")

    async def _completion(self, body: dict[str, Any], n: int, stream: bool) -> Completion:
        if stream:
            assembly = Assembly()

            def take(chunk: Any) -> None:
                for _ in assembly.add(chunk):
                    pass

            latency_s = await self._endpoint.stream("/chat/completions", body, take)
            answer = assembly.body
            if not answer["choices"]:
                raise ProtocolError("no stream came: the server ignores `stream`, or does not send events")
        else:
            content, latency_s = await self._endpoint.post("/chat/completions", body)
            try:
                answer = orjson.loads(content)
            except orjson.JSONDecodeError:
                raise ProtocolError(f"answered {content[:60].decode(errors='replace')!r}, which is not JSON") from None
        common = {"model": body["model"], "policy_version": versions.BASE}
        return Completion(answer, generations(answer, common, n), latency_s)

    def _without_key(self, text: str) -> str:
        return text.replace(self._api_key, "[the API key]") if self._api_key else text


def _said(response: httpx.Response, body: Any) -> str:
    if response.has_redirect_location:
        return f"redirects to {redact_url(response.headers['location'])}"
    error = body.get("error", body.get("detail", body)) if isinstance(body, dict) else body
    message = error.get("message", error) if isinstance(error, dict) else error
    text = response.text if message is None else str(message)
    return " ".join(text.split())[:200] or response.reason_phrase
