"""Policy protocol and sampling settings."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from hashlib import sha256
from typing import Any, NamedTuple, Protocol, runtime_checkable

import httpx
from pydantic import Field, field_validator, model_validator

from r3agent._util.messages import shorten
from r3agent.records.cost import Prices
from r3agent.records.sampling import FORMS, LIMITS
from r3agent.records.trajectory import Generation, Message, Record

SEEDS = 2**31 - 2**10
"""Number of derived seeds; with the index of a choice added they are still 31 bits, which every server takes."""


class Sampling(Record):
    """Sampling settings, sent with every request and stored on every span."""

    temperature: float | None = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Sampling temperature; 0 takes the most likely token. "none" leaves it to the server."""
    top_p: float | None = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling: total probability of the most likely tokens to sample from. "none" leaves it to the server."""
    max_tokens: int | None = Field(default=512, ge=1)
    """Maximum number of tokens in a completion. "none" leaves it to the server."""
    seed: int | None = None
    """Seed of all episodes. Each of their requests has its own, derived from this one, the id of the task, the sample,
    the number of earlier episodes on the thread and the place in the tree. Choice i of a request has its seed + i, as
    in vLLM."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion."""
    extra: dict[str, Any] = {}
    """Additional fields of the request body, for endpoint-specific options."""

    @field_validator("temperature", "top_p", "max_tokens", "seed", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        """Read "none", because TOML has no null."""
        return None if value == "none" else value

    @model_validator(mode="before")
    @classmethod
    def _own_fields(cls, data: Any) -> Any:
        """Take settings out of `extra` that have a field, so that every reader finds them there."""
        extra = data.get("extra") if isinstance(data, dict) else None
        if not isinstance(extra, dict):
            return data
        own = {name: value for name, value in extra.items() if name in cls.model_fields}
        own |= {"max_tokens": extra["max_completion_tokens"]} if "max_completion_tokens" in extra else {}
        return {**data, **own, "extra": {name: value for name, value in extra.items() if name not in own}}

    @field_validator("extra")
    @classmethod
    def _is_json(cls, extra: dict[str, Any]) -> dict[str, Any]:
        for name, value in extra.items():
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as error:
                remedy = "; give what the endpoint's JSON has"
                if hasattr(value, "model_json_schema"):
                    schema = f'{{"name": "{value.__name__}", "schema": {value.__name__}.model_json_schema()}}'
                    remedy = f'; write {{"type": "json_schema", "json_schema": {schema}}}'
                raise ValueError(f"{name} = {shorten(value)} is not JSON: {error}{remedy}") from None
        return extra

    def body(self) -> dict[str, Any]:
        """Return the fields of a chat completion request, without those that are `None`."""
        body = {**self._own(), **self.extra}
        if not self.stop:
            del body["stop"]
        if "max_completion_tokens" in self.extra:
            del body["max_tokens"]
        return {name: value for name, value in body.items() if value is not None}

    def in_force(self, sent: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings as a span records them: those that the request lacks are `None`.

        Args:
            sent: body of the request that was answered.
            asked: fields of the request that was to be made; those that `sent` lacks or has otherwise are `refused`.
        """
        limit = next((sent[name] for name in LIMITS if name in sent), None)
        got = {**sent, **({} if limit is None else dict.fromkeys(LIMITS, limit))}
        settings = {name: got.get(name) for name in self._own()}
        refused = sorted(name for name, value in asked.items() if got.get(name) != value)
        return {
            **settings,
            **({} if self.stop else {"stop": []}),
            "extra": {name: value if name in got else None for name, value in self.extra.items()},
            **({"refused": refused} if refused else {}),
        }

    def _own(self) -> dict[str, Any]:
        return {name: list(value) if name == "stop" else value for name, value in self if name != "extra"}

    def at(self, *place: object) -> Sampling:
        """Return the settings of one request: its seed is a hash of this one and of its place, a JSON value."""
        if self.seed is None:
            return self
        digest = sha256(json.dumps([self.seed, *place]).encode()).digest()
        return self.model_copy(update={"seed": int.from_bytes(digest[:8], "big") % SEEDS})

    def without_grammar(self) -> Sampling:
        """Return the settings without fields that force the form of an answer, such as `response_format`."""
        extra = {field: value for field, value in self.extra.items() if field not in FORMS}
        return self if len(extra) == len(self.extra) else self.model_copy(update={"extra": extra})

    def for_choice(self, i: int) -> Sampling:
        """Return the settings for sampling choice i alone, with its own seed."""
        return self if self.seed is None else self.model_copy(update={"seed": self.seed + i})


@runtime_checkable
class Policy(Protocol):
    """Interface between the graph and a model."""

    async def sample(
        self,
        messages: Sequence[Message],
        *,
        n: int = 1,
        tools: Sequence[dict[str, Any]] = (),
        sampling: Sampling | None = None,
    ) -> list[Generation]:
        """Sample `n` completions of one conversation.

        Raises:
            PolicyError: the endpoint did not return them; a `ConversationError` if it refused the conversation because
                of its text, e.g. its length: the graph then records failed tries.
        """
        ...

    async def aclose(self) -> None:
        """Close connections; the policy cannot be used afterwards."""
        ...


def sampling_of(policy: Policy) -> Sampling | None:
    """Return the policy's own sampling settings; `None` if it does not show them."""
    own: object = getattr(policy, "sampling", None)
    return own if isinstance(own, Sampling) else None


def prices_of(policy: Policy) -> Prices | None:
    """Return the prices of the policy's tokens; `None` if it does not show them."""
    own: object = getattr(policy, "prices", None)
    return own if isinstance(own, Prices) else None


@runtime_checkable
class Versioned(Protocol):
    """Policy that knows which version of its model answers."""

    async def versioned_name(self) -> str:
        """Return the name of the model with the version that answers at present, if that is known."""
        ...


@runtime_checkable
class Pinnable(Protocol):
    """Policy whose version may change between two calls."""

    def pinned(self, model: str) -> Policy:
        """Return this policy pinned to the version that answered as `model`, as long as it is served."""
        ...


@runtime_checkable
class Paced(Protocol):
    """Policy that knows how many concurrent requests its server bears."""

    def room(self) -> int:
        """Return how many requests may be in flight at present."""
        ...


@runtime_checkable
class Pooled(Protocol):
    """Policy over several servers, that keeps an episode on one of them."""

    def episode(self) -> AbstractContextManager[Policy]:
        """Give one episode its policy."""
        ...


@runtime_checkable
class Renamable(Protocol):
    """Policy that can ask other models of its server."""

    def asking(self, model: str) -> Policy:
        """Return this policy for the model of that served name."""
        ...


class Access(NamedTuple):
    """Settings with which a policy reaches its server, for other clients of it."""

    proxy: str | None = None
    """URL of a proxy; `None` for those of the environment."""
    verify: bool | str | ssl.SSLContext = True
    """Check of the server's certificate, as `OpenAIPolicy` documents it."""
    http_client: httpx.AsyncClient | None = None
    """Client of the application, which sends all requests."""
    timeout_s: float = 600.0
    max_tries: int = 6
    outage_s: float = 600.0


class Route(NamedTuple):
    """Way of a request to the model that a policy samples from."""

    base_url: str
    model: str
    """Served name."""
    headers: Mapping[str, str]
    """Headers with the key, which are never recorded."""
    version: str | None
    """Policy version that answers there, if it is known."""
    access: Access = Access()
    is_unchanged: Callable[[], bool] = lambda: True
    """Returns False while the served name may stand for other weights than when this was read, as far as the run
    tells."""


@runtime_checkable
class Routed(Protocol):
    """Policy whose model others can ask too, as an application's agent does."""

    async def route(self) -> Route:
        """Return where requests go at present."""
        ...
