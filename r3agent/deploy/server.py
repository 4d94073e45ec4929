"""HTTP client of the routes that change a server's weights, as vLLM defines them.

    /v1/models, /v1/completions, /v1/load_lora_adapter, /v1/unload_lora_adapter     under the base URL
    /pause, /collective_rpc, /reset_prefix_cache, /update_weight_version, /resume   at the server's root
    /weight_info, /metrics, /health

Nothing is retried, since a whole deploy can be repeated. Every failure is a `DeployError`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
"""Remedies by a part of vLLM's message when it refuses an adapter."""

LOAD_METRICS = ("vllm:num_requests_running", "vllm:num_requests_waiting")
ADAPTERS_METRIC = "vllm:lora_requests_info"


class ServerLoad(NamedTuple):
    """Unfinished requests of a server."""

    requests: int
    adapters: frozenset[str]
    """Served names of the adapters in use."""


class Server:
    """Client of one server; use it as a context manager.

    Args:
        base_url: OpenAI base URL, ending in `/v1`.
        timeout_s: limit for one request; a pause waits this long for running generations.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        proxy: str | None = None,
        verify: bool | str = True,
        timeout_s: float = 120.0,
    ) -> None:
        self._url = ApiURL(base_url)
        if not self._url.is_versioned:
            raise ConfigError(f"base_url = {redact_url(base_url)!r}: it must end in /v1, as {EXAMPLE} does")
        self.base_url = base_url
        self._api_key, self._timeout_s = api_key, timeout_s
        self._settings: Any = {
            "api_key": api_key,
            "headers": headers,
            "proxy": proxy,
            "verify": verify,
            "timeout_s": timeout_s,
        }
        self._client = ClientSettings(**self._settings).open()
        self.root = self._url.root
        """Address of the server itself, without any password."""

        self._successors: list[Server] = []

    def at(self, base_url: str) -> Server:
        """Return a client of another server with the same settings; closing this one closes it too."""
        successor = Server(base_url, **self._settings)
        self._successors.append(successor)
        return self._successors[-1]

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        for server in (self, *self._successors):
            server._client.close()

    def models(self) -> list[str]:
        """Return the served names of the base model and its adapters."""
        return list(self.sources())

    def sources(self) -> dict[str, str | None]:
        """Map each served name to its source, the `root`; `None` if the server does not report it."""
        answer = self._json("GET", "v1/models", remedy="base_url must be the API's, ending in /v1")
        try:
            return {model["id"]: model.get("root") for model in answer["data"]}
        except (KeyError, TypeError, AttributeError):
            raise DeployError(f"{self.root}/v1/models: not a list of models; is base_url an OpenAI API?") from None

    def load_adapter(self, name: str, path: Path) -> None:
        body = {"lora_name": name, "lora_path": str(path)}
        try:
            self._call("POST", "v1/load_lora_adapter", json=body, remedy=LORA_ROUTES)
        except DeployError as error:
            remedies = [remedy for part, remedy in LOAD_REMEDIES.items() if part in str(error)]
            raise DeployError("; ".join([str(error), *remedies])) from error

    def unload_adapter(self, name: str) -> None:
        """Unload an adapter; its running generations finish undisturbed."""
        self._call("POST", "v1/unload_lora_adapter", json={"lora_name": name}, remedy=LORA_ROUTES)

    def pause(self) -> None:
        """Let running generations finish, and hold back new ones."""
        self._call("POST", "pause", query={"mode": "wait"}, remedy=DEV_ROUTES)

    def resume(self) -> None:
        self._call("POST", "resume", remedy=DEV_ROUTES)

    def reload_weights(self, path: str) -> None:
        body = {"method": "reload_weights", "kwargs": {"weights_path": path}}
        self._call("POST", "collective_rpc", json=body, remedy=DEV_ROUTES)

    def weight_version(self) -> str | None:
        """Return the version that was set last; `None` if the server does not report it."""
        try:
            return self._json("GET", "weight_info", remedy=DEV_ROUTES).get("weight_version")
        except DeployError:
            return None

    def set_weight_version(self, version: str) -> None:
        """Set the version that the server reports with each response, for clients that record it."""
        self._call("POST", "update_weight_version", json={"new_version": version}, remedy=DEV_ROUTES)

    def load(self) -> ServerLoad | None:
        """Return the running and queued requests; `None` if the server does not report them."""
        try:
            return _read_load(self._call("GET", "metrics", remedy="").text)
        except DeployError:
            return None

    def takes_adapters(self) -> bool:
        """Return False if this is a vLLM without `--enable-lora`, by its metrics; only vLLM has a part without."""
        try:
            metrics = self._call("GET", "metrics", remedy="").text
        except DeployError:
            return True
        return LOAD_METRICS[0] not in metrics or ADAPTERS_METRIC in metrics

    def reset_prefix_cache(self) -> None:
        """Drop the keys and values that the old weights computed."""
        if not self._json("POST", "reset_prefix_cache", remedy=DEV_ROUTES).get("success", True):
            raise DeployError(
                f"{self.root}/reset_prefix_cache: success = false, generations still hold the cache of the old "
                "weights; deploy again when the server is idle"
            )

    def next_logprob(self, model: str, before_T: Sequence[int], token: int) -> float:
        """Return log p(token | tokens before it), by generating one token with no other allowed.

        `prompt_logprobs` would return all of them in one request. But on a server with adapters, vLLM leaves an adapter
        out of them (vllm#51594), or its engine crashes if other requests are running (vllm#29955).
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

    def _call(
        self, method: str, route: str, *, remedy: str, query: Mapping[str, str] | None = None, **request: Any
    ) -> httpx.Response:
        url = self._url.server_route(f"/{route}").copy_merge_params(query or {})
        where = f"{self.root}/{route}"
        try:
            response = self._client.request(method, url, **request)
        except httpx.RequestError as error:
            timed_out = isinstance(error, httpx.TimeoutException)
            remedy = "look at the server's log, then deploy again" if timed_out else "is the server running?"
            raise DeployError(f"{where}: {no_answer(error, self._settings['timeout_s'])}; {remedy}") from error
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
    """Parse vLLM's metrics; `None` for any other text."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        samples = [sample for family in text_string_to_metric_families(metrics) for sample in family.samples]
    except ValueError:
        return None
    counts = [sample.value for sample in samples if sample.name in LOAD_METRICS]
    if not counts:
        return None
    # There is one sample for each combination of adapters so far; its value is a Unix time in seconds.
    latest = max((s for s in samples if s.name == ADAPTERS_METRIC), key=lambda s: s.value, default=None)
    labels = latest.labels if latest else {}
    names = ",".join(labels.get(f"{state}_lora_adapters", "") for state in ("running", "waiting")).split(",")
    return ServerLoad(int(sum(counts)), frozenset(filter(None, names)))
