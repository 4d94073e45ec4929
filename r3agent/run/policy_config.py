"""Settings of the server of a run, `[policy]` in r3.toml, and how requests reach it."""

from __future__ import annotations

import os
from typing import Any, TypedDict, cast

from pydantic import Field, field_validator

from r3agent.errors import ConfigError
from r3agent.http.errors import NO_KEY
from r3agent.http.headers import check_stored, fill_in, parse_headers
from r3agent.http.urls import ApiURL, check_proxy, redact_url
from r3agent.policy.live import LIVE
from r3agent.records.cost import Prices
from r3agent.records.record import Record
from r3agent.records.versions import is_version


class Access(TypedDict):
    """Arguments of everything that sends requests to the server."""

    api_key: str | None
    headers: dict[str, str]
    proxy: str | None
    verify: bool | str


class PolicyConfig(Record):
    base_url: str = "http://127.0.0.1:8000/v1"
    """Base URL of an OpenAI-compatible server; usually ends in /v1."""
    base_urls: tuple[str, ...] = ()
    """Base URLs of more servers of the same model: each episode is sampled from one of them, and `deploy` loads a
    version onto all. A server that fails is taken out until it answers again."""
    model: str = Field(default="bundled", min_length=1)
    """Served name of the base model; version v0007 is served as `MODEL@v0007`."""
    base_model: str = Field(default="bundled", min_length=1)
    """Directory or hub id of the base model's weights, for training; `bundled` is the policy in the package."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the API key; the key itself is never stored."""
    headers: dict[str, str] = {}
    """Further headers of every request, e.g. of a gateway. `$NAME` in a value is an environment variable; secret values
    must come from one, e.g. `headers = {api-key = "$AZURE_KEY"}`."""
    proxy: str = ""
    """URL of a proxy for requests to the server; `$NAME` in it is an environment variable, from which a password must
    come. Empty: those of `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` of the environment."""
    verify: bool | str = True
    """Check of the server's certificate: a PEM file with the authorities to trust, e.g. of a company, or false for no
    check."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Timeout of one request, in seconds."""
    outage_s: float = Field(default=600.0, ge=0)
    """Seconds to wait for a server that has answered before and became unreachable."""
    prices: Prices | None = None
    """Prices per million tokens, for budgets of cost: `prices = {prompt = 0.15, cached = 0.075, sampled = 0.6}`, and a
    `currency` other than USD."""

    @field_validator("headers", mode="before")
    @classmethod
    def _headers(cls, headers: Any) -> Any:
        """Read lines `Name: value`, as of the command line, and refuse secrets, which would be written to r3.toml."""
        try:
            if isinstance(headers, list | tuple):
                headers = parse_headers(map(str, cast(list[Any], headers)), setting="policy.headers")
            if isinstance(headers, dict):
                check_stored(
                    {str(k): str(v) for k, v in cast(dict[Any, Any], headers).items()}, setting="policy.headers"
                )
        except ConfigError as error:
            raise ValueError(error) from None
        return headers

    @field_validator("model")
    @classmethod
    def _model(cls, model: str) -> str:
        base, _, version = model.rpartition("@")
        if base and (version == LIVE or is_version(version)):
            raise ValueError(
                f"{model} is a version of {base}; write {base}, the base model: the stages of a run sample from the "
                "version of it that is live there, v0000 at first"
            )
        return model

    @field_validator("proxy")
    @classmethod
    def _proxy(cls, proxy: str) -> str:
        try:
            check_proxy(proxy, setting="policy.proxy")
        except ConfigError as error:
            raise ValueError(error) from None
        return proxy

    @field_validator("base_urls")
    @classmethod
    def _all_without_password(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(cls._check_url, urls))

    @field_validator("base_url")
    @classmethod
    def _without_password(cls, url: str) -> str:
        return cls._check_url(url)

    @staticmethod
    def _check_url(url: str) -> str:
        if redact_url(url) != url:
            raise ValueError(
                f"{redact_url(url)} with a password in it would be written to r3.toml; pass it as the API key"
            )
        try:
            ApiURL(url)
        except ConfigError as error:
            raise ValueError(error) from None
        return url

    def access(self) -> Access:
        """Return how to reach the server, with values from the environment.

        Raises:
            ConfigError: an environment variable that a header or the proxy names is not set.
        """
        proxy = fill_in({"proxy": self.proxy}, setting="policy.proxy")["proxy"]
        return {
            "api_key": os.environ.get(self.api_key_env),
            "headers": fill_in(self.headers, setting="policy.headers"),
            "proxy": proxy or None,
            "verify": self.verify,
        }

    def policy_access(self) -> Access:
        """Return the same for an `OpenAIPolicy`, which would otherwise take a key from `OPENAI_API_KEY`."""
        access = self.access()
        return {**access, "api_key": access["api_key"] or NO_KEY}
