"""Policy that samples completions from an OpenAI-compatible endpoint and records the exact tokens.

It requests logprobs, vLLM's token ids and neutral values of the sampling settings that a server would otherwise take
from its own defaults, and omits fields that the endpoint refuses, your own settings included. Every generation records
its capability, the settings in force (`None`: left out, so the server decided), and the version that answered.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import httpx
from pydantic import Field

from r3agent._util.aio import gather_all, run_sync
from r3agent._util.checked import AtLeastOne, NotNegative, Positive, Word, checked
from r3agent._util.shared import Shared
from r3agent.errors import AccessError, ConfigError, EndpointError, ProtocolError
from r3agent.http.errors import NO_KEY
from r3agent.http.headers import has_key
from r3agent.http.negotiation import Terms, negotiate
from r3agent.http.urls import ApiURL, redact_url
from r3agent.policy.base import Route, Sampling
from r3agent.policy.endpoints import Endpoints
from r3agent.policy.live import LIVE, Answered, FixedName, LivePolicy, ServedName, Target
from r3agent.policy.parse import NOT_A_COMPLETION, generations, not_a_completion
from r3agent.policy.reception import Reception
from r3agent.policy.stream import OnDelta, shift_choices
from r3agent.records import versions
from r3agent.records.cost import Prices
from r3agent.records.sampling import NEUTRAL
from r3agent.records.trajectory import Generation, Message
from r3agent.store.registry import Registry


class OpenAIPolicy(Shared):
    """Model behind an OpenAI-compatible endpoint.

    Args:
        base_url: base URL that ends in `/v1`, e.g. `http://127.0.0.1:8000/v1`.
        model: served name; `NAME@v0007` is version v0007 of NAME, a bare name is the base, v0000; `NAME@live` is
            resolved with the registry's live pointer for every request.
        api_key: default `$OPENAI_API_KEY`, unless a header has the key; never recorded.
        headers: further headers of every request, e.g. of a gateway, or `{"api-key": ...}` of Azure; never recorded.
        proxy: URL of a proxy; default: `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` of the environment.
        verify: False for a server whose certificate is not checked; the PEM file of the authorities of a company; or
            an `ssl.SSLContext`, e.g. with a client certificate. Default: the authorities that the environment's
            `SSL_CERT_FILE` names, or certifi's.
        http_client: client of the application, which closes it, for one event loop, with its own proxies and
            certificates. Requests add the key, the headers and the timeout of the policy.
        registry: registry or directory of the run. It is needed for `NAME@live`, and for asking the server which
            version answered if full weights are reloaded under one name.
        version: version of a bare name, if neither the name nor the server tells it.
        concurrency: maximum number of connections and of concurrent requests.
        adaptive: begin with few concurrent requests, and follow the server's latency and errors up to `concurrency`.
        timeout_s: timeout of one request, in seconds.
        outage_s: seconds to wait for a server that has answered before and became unreachable.
        max_tries: tries of one request; `r3agent.http.retry` documents the errors that are retried.
        prices: prices of the model's tokens, for budgets of cost.

    Raises:
        ConfigError: an argument is out of range or of another type, the URL is invalid, `NAME@live` has no registry, or
            nothing is live.
    """

    @checked
    def __init__(
        self,
        base_url: str,
        model: Word,
        *,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        proxy: str | None = None,
        verify: bool | str | ssl.SSLContext = True,
        http_client: httpx.AsyncClient | None = None,
        sampling: Sampling | None = None,
        registry: Registry | str | Path | None = None,
        version: str | None = None,
        concurrency: AtLeastOne = 64,
        adaptive: bool = False,
        timeout_s: Positive = 600.0,
        outage_s: NotNegative = 600.0,
        max_tries: AtLeastOne = 6,
        prices: Prices | None = None,
    ) -> None:
        self.base_url = base_url
        self.sampling = sampling or Sampling()
        self.prices = prices
        self._terms: dict[tuple[str, str], Terms] = {}
        """Refused fields by base URL and model, whose versions are one."""
        own_key = has_key({**(headers or {}), **(http_client.headers if http_client else {})})
        settings: dict[str, Any] = {
            "api_key": api_key or ("" if own_key else os.environ.get("OPENAI_API_KEY")) or NO_KEY,
            "headers": headers,
            "proxy": proxy,
            "verify": verify,
            "http_client": http_client,
            "concurrency": concurrency,
            "adaptive": adaptive,
            "timeout_s": timeout_s,
            "outage_s": outage_s,
            "max_tries": max_tries,
        }
        self._endpoints = Endpoints(base_url, settings)
        self._registry = Registry(registry) if isinstance(registry, str | Path) else registry
        self._name(model, version)
        self._endpoints.of(None, self._current_url)  # raises what is invalid

    def __repr__(self) -> str:
        return f"OpenAIPolicy({redact_url(self.base_url)!r}, {self.model!r})"

    @checked
    async def sample(
        self,
        messages: Annotated[Sequence[Message], Field(min_length=1)],
        *,
        n: AtLeastOne = 1,
        tools: Sequence[dict[str, Any]] = (),
        sampling: Sampling | None = None,
        on_delta: OnDelta | None = None,
    ) -> list[Generation]:
        """Sample `n` completions with one request; if the endpoint returns fewer, request the rest one by one.

        Args:
            on_delta: stream the response and call this with each delta; the record is the same.

        Raises:
            EndpointError: the endpoint is unreachable, timed out or failed, after `max_tries`.
            AccessError: the key, the model or the URL is wrong.
            RequestError: this request was refused; a `ConversationError` if it is because of its text.
            ProtocolError: the response is not a chat completion.
        """
        body: dict[str, Any] = {"messages": list(messages), **({"tools": list(tools)} if tools else {})}
        settings = sampling or self.sampling
        target = await self._pinned_target()
        try:
            drawings = await self._complete(target, body, settings, n, on_delta)
        except (AccessError, EndpointError):
            # A deploy may have unloaded this version or replaced the server; if so, retry with the live version.
            if not self._is_live or (now := await self._target()) == target:
                raise
            target = now
            drawings = await self._complete(target, body, settings, n, on_delta)
        rest = (
            self._complete(target, body, settings.for_choice(i), 1, on_delta and shift_choices(on_delta, i))
            for i in range(len(drawings), n)
        )
        return drawings + [generation for one in await gather_all(rest) for generation in one]

    async def versioned_name(self) -> str:
        """Return the name of the model with the version that answers at present, if a name or the registry tells it.

        Raises:
            ConfigError: nothing is live.
        """
        target = await self._target()
        if versions.served_version(target.model):
            return target.model
        version = self._version or target.version or (versions.BASE if self._is_live else None)
        if version is None and target.in_place and self._registry is not None:
            version = self._registry.live
        return f"{target.model}@{version}" if version else target.model

    async def route(self) -> Route:
        """Return where requests go at present, for an application's own client.

        Raises:
            ConfigError: nothing is live.
        """
        target = await self._pinned_target()
        endpoint = self._endpoints.of(target.base_url, self._current_url)
        now = await self._endpoints.weights(endpoint).now() if target.in_place else None
        keeps = self._served_name.keeps(target)
        version = self._answered.version(target, self.base_url, target.model, now, now, keeps=keeps)
        is_unchanged = partial(self._served_name.is_unchanged, target)
        return Route(endpoint.base_url, target.model, endpoint.headers, version, endpoint.access, is_unchanged)

    def room(self) -> int:
        """Return how many requests may be in flight at present."""
        return self._endpoints.room()

    def pinned(self, model: str) -> OpenAIPolicy:
        """Return this policy pinned to the version that answered as `model`, for the rest of an episode."""
        if not self._is_live:
            return self
        policy = copy(self)
        policy._pin = model
        return policy

    def asking(self, model: str) -> OpenAIPolicy:
        """Return this policy for another served name: another version, `NAME@live`, or another model of the server."""
        policy = copy(self)
        policy._name(model, None)
        return policy

    def _name(self, model: str, version: str | None) -> None:
        registry = self._registry
        self.model = model
        self._version = version
        self._pin: str | None = None
        self._answered = Answered(version)
        self._is_live = model.endswith(f"@{LIVE}")
        if not self._is_live:
            self._served_name: ServedName = FixedName(model, version, registry)
        elif registry is not None:
            self._served_name = LivePolicy(model.removesuffix(f"@{LIVE}"), registry)
        else:
            raise ConfigError(f"model = {model!r} needs the run whose live version it is; pass registry=RUN_DIR")

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        await self._endpoints.aclose()

    def close(self) -> None:
        """Close the connections that `graph.invoke` opened."""
        run_sync(self.aclose())

    async def __aenter__(self) -> OpenAIPolicy:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _complete(
        self, target: Target, body: dict[str, Any], settings: Sampling, n: int, on_delta: OnDelta | None
    ) -> list[Generation]:
        asked = settings.body()
        added = {"logprobs": True, "return_token_ids": True, **NEUTRAL}
        fields = {**added, **body, **asked, **({"n": n} if n > 1 else {})}
        if on_delta is not None:
            fields |= {"stream": True, "stream_options": {"include_usage": True}}

        async def send(sent: dict[str, Any]) -> list[Generation]:
            in_force = settings.in_force(sent, {**added, **asked}) | {field: sent.get(field) for field in NEUTRAL}
            return await self._ask(target, sent, in_force, n, on_delta)

        return await negotiate(self._terms_of(target), fields, send, asked=asked)

    async def _ask(
        self, target: Target, body: dict[str, Any], sampling: dict[str, Any], n: int, on_delta: OnDelta | None
    ) -> list[Generation]:
        """Send one request; if the name does not identify the version, check the weights before and after it."""
        endpoint = self._endpoints.of(target.base_url, self._current_url)
        weights = self._endpoints.weights(endpoint)
        before = (weights.last or await weights.now()) if target.in_place else None
        body = {"model": target.model, **body}
        where = f"{redact_url(endpoint.base_url)}, model {target.model!r}"
        received = Reception(where, on_delta)
        try:
            if not body.get("stream"):
                latency_s = await endpoint.post("/chat/completions", body, received.take)
            else:
                take = (received.begin, received.may_repeat, received.end)
                latency_s = await endpoint.stream("/chat/completions", body, *take)
            answer = received.answer()
            # A deploy may have given the name to several versions meanwhile.
            after = await weights.now() if target.in_place or await self._served_name.is_shared() else None
            keeps = self._served_name.keeps(target)
            served_name = str(answer.get("model") or target.model)
            common = {
                "model": target.model,
                "policy_version": self._answered.version(
                    target, self.base_url, served_name, before, after, keeps=keeps
                ),
                "sampling": sampling,
                "latency_s": round(latency_s, 4),
            }
            drawings = generations(answer, common, n, body)
        except NOT_A_COMPLETION as error:
            raise ProtocolError(
                f"{where}: {not_a_completion(error, received.beginning, endpoint.redact)}; "
                f"{ApiURL(endpoint.base_url).hint}"
            ) from error
        if not body.get("stream"):
            for i, generation in enumerate(drawings):
                received.tell(i, generation.text)
        return drawings

    def _terms_of(self, target: Target) -> Terms:
        url, name = target.base_url or self.base_url, versions.base_name(target.model)
        return self._terms.setdefault((url, name), Terms(f"{redact_url(url)}, model {name!r}"))

    async def _pinned_target(self) -> Target:
        target = await self._target()
        return target if self._pin in (None, target.model) else target._replace(model=self._pin, version=None)

    async def _target(self) -> Target:
        return await self._served_name.target()

    async def _current_url(self) -> str:
        return (await self._target()).base_url or self.base_url
