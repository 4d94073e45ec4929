"""The side of an OpenAI-compatible server that changes its weights: vLLM's routes, over HTTP.

    /v1/models, /v1/completions, /v1/load_lora_adapter, /v1/unload_lora_adapter     under the base URL
    /pause, /collective_rpc, /reset_prefix_cache, /update_weight_version, /resume   at the server's root
    /metrics, /health

Nothing is retried: deploying is repeatable as a whole. Whatever goes wrong is a `DeployError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from r3agent.errors import ConfigError, DeployError
from r3agent.http.client import ClientSettings
from r3agent.http.errors import WRONG_KEY, no_answer, read_error
from r3agent.http.urls import EXAMPLE, ApiURL, redact_url

LORA_ROUTES = (
    "start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in its environment, or use `r3agent serve`"
)
DEV_ROUTES = (
    "full weights are reloaded through vLLM's development routes: start it with VLLM_SERVER_DEV_MODE=1 in its "
    "environment, or train an adapter"
)
COMPLETIONS = "the fingerprint needs /v1/completions with allowed_token_ids and logprobs: use vLLM or `r3agent serve`"
LOAD_REMEDIES = {
    "max_lora_rank": "start the server with a --max-lora-rank of at least the adapter's",
    "not enabled": "start the server with --enable-lora",
    "No adapter found": "the server must see the directory under the same path: share the file system",
}
"""Remedies, by a part of the message with which vLLM refuses an adapter."""

LOAD_METRICS = ("vllm:num_requests_running", "vllm:num_requests_waiting")
ADAPTERS_METRIC = "vllm:lora_requests_info"


class ServerLoad(NamedTuple):
    """Requests that are not finished."""

    requests: int
    adapters: frozenset[str]
    """Served names in use."""


class Server:
    """One server; use it as a context manager.

    Args:
        base_url: the OpenAI one, ending in `/v1`.
        timeout_s: for one request; a pause waits this long for the generations under way.
    """

    def __init__(self, base_url: str, *, api_key: str | None = None, timeout_s: float = 120.0) -> None:
        self._url = ApiURL(base_url)
        if not self._url.is_versioned:
            raise ConfigError(f"base_url = {redact_url(base_url)!r}: it must end in /v1, as {EXAMPLE} does")
        self.base_url = base_url
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._client = ClientSettings(timeout_s=timeout_s, api_key=api_key).open()
        self.root = self._url.root
        """Address of the server itself, without any password."""

        self._successors: list[Server] = []

    def at(self, base_url: str) -> Server:
        """Another server with the same key; closed with this one."""
        self._successors.append(Server(base_url, api_key=self._api_key, timeout_s=self._timeout_s))
        return self._successors[-1]

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        for server in (self, *self._successors):
            server._client.close()

    def models(self) -> list[str]:
        """Return the served names: the base and its adapters."""
        return list(self.sources())

    def sources(self) -> dict[str, str | None]:
        """Map each served name to its source, the `root`; `None` where the server does not name it."""
        answer = self._json("GET", "v1/models", remedy="base_url must be the API's, ending in /v1")
        try:
            return {model["id"]: model.get("root") for model in answer["data"]}
        except (KeyError, TypeError, AttributeError):
            raise DeployError(f"{self.root}/v1/models: not a list of models; is base_url an OpenAI API?") from None

    def load_adapter(self, name: str, path: Path) -> None:
        body = {"lora_name": name, "lora_path": str(path.resolve())}
        try:
            self._call("POST", "v1/load_lora_adapter", json=body, remedy=LORA_ROUTES)
        except DeployError as error:
            remedies = [remedy for part, remedy in LOAD_REMEDIES.items() if part in str(error)]
            raise DeployError("; ".join([str(error), *remedies])) from error

    def unload_adapter(self, name: str) -> None:
        """Take the name away; generations under way end undisturbed."""
        self._call("POST", "v1/unload_lora_adapter", json={"lora_name": name}, remedy=LORA_ROUTES)

    def pause(self) -> None:
        """Let the generations under way end and hold back new ones."""
        self._call("POST", "pause", params={"mode": "wait"}, remedy=DEV_ROUTES)

    def resume(self) -> None:
        self._call("POST", "resume", remedy=DEV_ROUTES)

    def reload_weights(self, path: str) -> None:
        body = {"method": "reload_weights", "kwargs": {"weights_path": path}}
        self._call("POST", "collective_rpc", json=body, remedy=DEV_ROUTES)

    def set_weight_version(self, version: str) -> None:
        """Set the version that the server reports with each response, for clients that record it."""
        self._call("POST", "update_weight_version", json={"new_version": version}, remedy=DEV_ROUTES)

    def load(self) -> ServerLoad | None:
        """Requests that it generates for and has queued; `None` where it does not tell."""
        try:
            return _read_load(self._call("GET", "metrics", remedy="").text)
        except DeployError:
            return None

    def reset_prefix_cache(self) -> None:
        """Forget keys and values that the old weights computed."""
        if not self._json("POST", "reset_prefix_cache", remedy=DEV_ROUTES).get("success", True):
            raise DeployError(
                f"{self.root}/reset_prefix_cache: success = false, generations still hold the cache of the old "
                "weights; deploy again when the server is idle"
            )

    def next_logprob(self, model: str, before_T: Sequence[int], token: int) -> float:
        """Return log p(token | tokens before it): one token is generated, and no other is allowed.

        `prompt_logprobs` would give all with one request, but on a server with adapters vLLM leaves them out of it
        (vllm#51594), or its engine dies of it when other requests are under way (vllm#29955).
        """
        body = {
            "model": model,
            "prompt": list(before_T),
            "max_tokens": 1,
            "temperature": 1.0,
            "allowed_token_ids": [token],
            "logprobs": 1,
            "return_token_ids": True,
        }
        answer = self._json("POST", "v1/completions", json=body, remedy=COMPLETIONS)
        try:
            choice = answer["choices"][0]
            logprob, forced = float(choice["logprobs"]["token_logprobs"][0]), choice["token_ids"] == [token]
        except (KeyError, IndexError, TypeError):
            raise DeployError(f"{self.root}/v1/completions gave no logprobs; {COMPLETIONS}") from None
        if not forced:
            raise DeployError(f"{self.root}/v1/completions does not know allowed_token_ids; {COMPLETIONS}")
        if answer.get("model") != model:
            raise DeployError(f"{self.root} answered as {answer.get('model')!r} when asked for {model!r}")
        return logprob

    def _json(self, method: str, route: str, *, remedy: str, **request: Any) -> dict[str, Any]:
        response = self._call(method, route, remedy=remedy, **request)
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            start = response.text.strip()[:60]
            raise DeployError(f"{self.root}/{route}: answered {start!r}, which is not a JSON object; {remedy}")
        return answer

    def _call(self, method: str, route: str, *, remedy: str, **request: Any) -> httpx.Response:
        where = f"{self.root}/{route}"
        try:
            response = self._client.request(method, self._url.server_route(f"/{route}"), **request)
        except httpx.RequestError as error:
            timed_out = isinstance(error, httpx.TimeoutException)
            remedy = "look at the server's log, then deploy again" if timed_out else "is the server running?"
            raise DeployError(f"{where}: {no_answer(error, self._timeout_s)}; {remedy}") from error
        if response.is_success:
            return response
        error = read_error(response)
        where = f"{where}: HTTP {error.status}"
        if error.status in WRONG_KEY:
            sent = "the API key that was sent is not the server's" if self._api_key else "no API key was sent"
            raise DeployError(f"{where}: {sent}; pass the key the server was started with")
        if error.has_no_route:
            raise DeployError(f"{where}, the server has no such route; {remedy}")
        raise DeployError(f"{where}: {error.brief}")


def _read_load(metrics: str) -> ServerLoad | None:
    """Read vLLM's metrics; `None` for any other text."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        samples = [sample for family in text_string_to_metric_families(metrics) for sample in family.samples]
    except ValueError:
        return None
    counts = [sample.value for sample in samples if sample.name in LOAD_METRICS]
    if not counts:
        return None
    # One sample for each combination of adapters there ever was; its value is when that was, in seconds since 1970.
    latest = max((s for s in samples if s.name == ADAPTERS_METRIC), key=lambda s: s.value, default=None)
    labels = latest.labels if latest else {}
    names = ",".join(labels.get(f"{state}_lora_adapters", "") for state in ("running", "waiting")).split(",")
    return ServerLoad(int(sum(counts)), frozenset(filter(None, names)))
