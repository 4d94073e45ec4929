"""Endpoints of one policy: a deploy may have moved it to another server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from r3agent.policy.endpoint import Endpoint
from r3agent.policy.live import WeightVersion


class Endpoints:
    """Endpoints by base URL, each made when it is asked for the first time.

    Args:
        base_url: the policy's own.
        settings: further arguments of each `Endpoint`.
    """

    def __init__(self, base_url: str, settings: Mapping[str, Any]) -> None:
        self._own_url, self._settings = base_url, settings
        self._by_url: dict[str, Endpoint] = {}
        self._weights: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, WeightVersion]] = WeakKeyDictionary()

    def of(self, base_url: str | None, current_url: Callable[[], Awaitable[str]]) -> Endpoint:
        """Return the endpoint of a base URL; `None` is the policy's own.

        Args:
            current_url: returns the base URL of the version that is live.

        Raises:
            ConfigError: a setting or the URL is invalid.
        """
        url = base_url or self._own_url

        async def is_current() -> bool:
            return await current_url() == url

        if url not in self._by_url:
            self._by_url[url] = Endpoint(url, **self._settings, is_current=is_current)
        return self._by_url[url]

    def weights(self, endpoint: Endpoint) -> WeightVersion:
        """Return the version of the weights of an endpoint's server, for the running event loop."""
        of_loop = self._weights.setdefault(asyncio.get_running_loop(), {})
        if endpoint.base_url not in of_loop:
            of_loop[endpoint.base_url] = WeightVersion(endpoint.weight_version)
        return of_loop[endpoint.base_url]

    def room(self) -> int:
        """Return how many requests may be in flight to one endpoint at present."""
        return max(endpoint.room() for endpoint in self._by_url.values())

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        for endpoint in [*self._by_url.values()]:
            await endpoint.aclose()
