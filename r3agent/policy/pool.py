"""One model on several servers: each episode stays on the least loaded one, for its prefix cache.

A server that fails is taken out, and its episodes go on elsewhere. Every few seconds one episode is sent to it as a
probe; when the server answers that, it is in again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

from r3agent.errors import AccessError, ConfigError, EndpointError, ProtocolError
from r3agent.http.urls import redact_url
from r3agent.policy.base import Route
from r3agent.policy.openai import OpenAIPolicy
from r3agent.records.trajectory import Generation, Message

PROBE_S = 5.0
"""Seconds between two probes of a server that is out."""

WAIT_S = 0.2


class Server:
    """Server of a pool, and its load."""

    def __init__(self, policy: OpenAIPolicy) -> None:
        self.policy = policy
        self.episodes = 0
        self.is_out = False
        self.probe_at = 0.0
        self.failure: Exception | None = None
        """Error that took it out last."""

    @property
    def is_free(self) -> bool:
        """True if an episode may go there."""
        return not self.is_out or time.monotonic() >= self.probe_at

    def fail(self, failure: Exception) -> None:
        """Take the server out until a probe succeeds."""
        self.is_out, self.probe_at, self.failure = True, time.monotonic() + PROBE_S, failure


class PoolPolicy:
    """Policy over several servers of one model.

    Args:
        policies: one for each server, with the same model and settings. Their `outage_s` should be short, because
            another server can answer meanwhile.
        outage_s: seconds to wait for any server when none answers.

    Raises:
        ConfigError: there is none, or they have different models.
    """

    def __init__(self, policies: Sequence[OpenAIPolicy], *, outage_s: float = 600.0) -> None:
        if len({policy.model for policy in policies}) != 1:
            raise ConfigError(f"policies = {list(policies)}: give one or more, all of the same model")
        self._servers = [Server(policy) for policy in policies]
        self._outage_s = outage_s
        first = policies[0]
        self.model, self.sampling, self.prices = first.model, first.sampling, first.prices

    @property
    def in_use(self) -> list[str]:
        """Base URLs of the servers that are in."""
        return [redact_url(server.policy.base_url) for server in self._servers if not server.is_out]

    @property
    def size(self) -> int:
        """Number of servers."""
        return len(self._servers)

    def room(self) -> int:
        """Return how many requests may be in flight at present, over the servers that are in."""
        return sum(server.policy.room() for server in self._servers if not server.is_out) or 1

    @contextmanager
    def episode(self) -> Generator[Seat]:
        """Give one episode its place on the least loaded server."""
        seat = Seat(self)
        try:
            yield seat
        finally:
            seat.leave()

    async def sample(self, messages: Sequence[Message], **given: Any) -> list[Generation]:
        """Sample as `OpenAIPolicy` does, on the least loaded server."""
        with self.episode() as seat:
            return await seat.sample(messages, **given)

    async def route(self) -> Route:
        """Return where requests go at present, for an application's own client."""
        return await (await self.wait_for_one()).policy.route()

    async def versioned_name(self) -> str:
        """Return the name of the model with the version that answers at present, if that is known."""
        return await self._servers[0].policy.versioned_name()

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        for server in self._servers:
            await server.policy.aclose()

    def choose(self) -> Server | None:
        """Return the server for an episode: one to probe, or else the least loaded; `None` if all are out."""
        free = [server for server in self._servers if server.is_free]
        chosen = min(free, key=lambda server: (not server.is_out, server.episodes), default=None)
        if chosen is not None and chosen.is_out:
            chosen.probe_at = time.monotonic() + PROBE_S  # one probe at a time
        return chosen

    async def wait_for_one(self) -> Server:
        """Return a server, after `outage_s` at most.

        Raises:
            AccessError: all refuse, for which there is nothing to wait.
            EndpointError: none is free in that time.
        """
        give_up = time.monotonic() + self._outage_s
        while (server := self.choose()) is None:
            last = self._servers[-1].failure
            if isinstance(last, AccessError) and all(isinstance(s.failure, AccessError) for s in self._servers):
                raise type(last)(str(last)) from last
            if time.monotonic() >= give_up:
                urls = ", ".join(redact_url(server.policy.base_url) for server in self._servers)
                raise EndpointError(f"none of {urls} answers (waited {self._outage_s:g} s); are the servers running?")
            await asyncio.sleep(min(WAIT_S, self._outage_s))
        return server


class Seat:
    """Policy of one episode: it stays on its server until that fails."""

    def __init__(self, pool: PoolPolicy) -> None:
        self._pool = pool
        self._server: Server | None = None
        self.model, self.sampling, self.prices = pool.model, pool.sampling, pool.prices

    async def sample(self, messages: Sequence[Message], **given: Any) -> list[Generation]:
        """Sample as `OpenAIPolicy` does; where the server fails, on another one.

        Raises:
            EndpointError, AccessError, ProtocolError: every server failed on this request; or none answers.
        """
        failed: set[Server] = set()
        while True:
            server = self._server or await self._sit()
            try:
                drawn = await server.policy.sample(messages, **given)
            except (EndpointError, AccessError, ProtocolError) as error:  # e.g. it was restarted without the adapter
                failed.add(server)
                server.fail(error)
                if self._server is server:  # else a concurrent request of the episode has gone elsewhere already
                    self.leave()
                if len(failed) == self._pool.size:
                    raise
            else:
                server.is_out = False
                return drawn

    async def route(self) -> Route:
        """Return where requests go at present, for an application's own client."""
        return await (self._server or await self._sit()).policy.route()

    async def versioned_name(self) -> str:
        """Return the name of the model with the version that answers at present, if that is known."""
        return await self._pool.versioned_name()

    async def aclose(self) -> None:
        """Leave the connections to the pool."""

    def leave(self) -> None:
        if self._server is not None:
            self._server.episodes -= 1
            self._server = None

    async def _sit(self) -> Server:
        server = await self._pool.wait_for_one()
        if self._server is None:  # else a concurrent request of the episode was faster
            self._server = server
            server.episodes += 1
        return self._server
