"""Live version of a policy, and version of the weights that a server has loaded."""

from __future__ import annotations

import asyncio
import shlex
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from r3agent.errors import ConfigError, R3Error
from r3agent.records import versions
from r3agent.store.registry import Registry

LIVE = "live"


class Target(NamedTuple):
    """Served name and its server."""

    model: str
    base_url: str | None
    """Base URL of the server; `None` for the policy's own."""
    in_place: bool
    """True if weights are reloaded under one name, so that the name does not identify the version."""
    version: str | None = None
    """Version that is live; `None` if the name is fixed."""
    swapped: tuple[int, ...] | None = None
    """Stamp of the run's marker while other weights replace the live ones, during a deploy or an evaluation."""


class ServedName:
    """Name that requests go to, whose target is read again when the run's versions, or what is live, have changed."""

    def __init__(self, registry: Registry | None) -> None:
        self._registry = registry
        self._seen = _stamps(registry)
        self._target = self._read()

    async def target(self) -> Target:
        """Return what the name means at present.

        Raises:
            ConfigError: nothing is live.
            RecordError: the run cannot be read.
        """
        if _stamps(self._registry) != self._seen:
            return await asyncio.to_thread(self.now)  # reads files, which would block the event loop
        return self._target

    def now(self) -> Target:
        """Return the same as `target`, in this thread."""
        if (stamps := _stamps(self._registry)) != self._seen:
            self._target, self._seen = self._read(), stamps
        return self._target

    async def is_shared(self) -> bool:
        """Return `Target.in_place` as it is at present; True if the run cannot be read, so that nobody knows."""
        try:
            return (await self.target()).in_place
        except R3Error:
            return True

    def keeps(self, target: Target) -> bool:
        """Return True if a target that was read earlier has the weights of its version, as far as the run tells."""
        return self.is_unchanged(target) and not (target.in_place and target.swapped is not None)

    def is_unchanged(self, target: Target) -> bool:
        """Return True if a target that was read earlier has the same weights as then, as far as the run tells."""
        try:
            now = self.now()
        except R3Error:
            return False
        if not (target.in_place or now.in_place):
            return True
        return (now.base_url, now.version, now.swapped) == (target.base_url, target.version, target.swapped)

    def _read(self) -> Target:
        raise NotImplementedError


class FixedName(ServedName):
    """Served name that a deploy does not change, although it may change the weights behind it.

    Args:
        version: version of a bare name, if neither the name nor the server tells it.
        registry: registry of the run; without one, no server is asked for the version of its weights.
    """

    def __init__(self, model: str, version: str | None, registry: Registry | None) -> None:
        self._model = model
        self._is_another = version not in (None, versions.BASE) and versions.served_version(model) is None
        super().__init__(registry)

    def now(self) -> Target:
        """Return the same as `target`, in this thread; a run that became unreadable may have anything in place."""
        try:
            return super().now()
        except R3Error:
            return Target(self._model, None, True, swapped=())  # the stamp of no marker

    def _read(self) -> Target:
        if (registry := self._registry) is None:
            return Target(self._model, None, False)
        swapped = _stamp(registry.swapped_path)  # before the rest, which is written before the marker
        return Target(self._model, None, self._is_another or has_weights_in_place(registry), swapped=swapped)


class LivePolicy(ServedName):
    """Live version of one name.

    Args:
        name: name of the policy; default: that of the registry.

    Raises:
        ConfigError: the registry belongs to another policy, or nothing is live.
    """

    def __init__(self, name: str | None, registry: Registry) -> None:
        self.name = name
        self._run = registry
        super().__init__(registry)

    def _read(self) -> Target:
        registry = self._run
        swapped = _stamp(registry.swapped_path)  # before the rest, which is written before the marker
        if registry.live is None:
            raise ConfigError(f"{registry.live_path}: nothing is live; {_begin(registry, self.name)}")
        card = registry.card(registry.live)
        self.name = self.name or card.name
        if card.name != self.name:
            raise ConfigError(
                f"{self.name}@{LIVE}: {registry.run_dir} is a run of {card.name!r}; ask for {card.name}@{LIVE}"
            )
        where = registry.served_name(card), registry.live_base_url
        return Target(*where, has_weights_in_place(registry), card.version, swapped)


def _begin(registry: Registry, name: str | None) -> str:
    """Say how a version becomes live."""
    run = shlex.quote(str(registry.run_dir))
    if registry.versions():
        return f"run `r3agent deploy --run {run}`"
    meanwhile = f", or ask for {name}, the base model, until then" if name else ""
    return f"the run's first stage, such as `r3agent collect --run {run}`, makes the base model live{meanwhile}"


def has_weights_in_place(registry: Registry) -> bool:
    """Return True if several versions share one served name, because whole weights are reloaded in place."""
    return registry.merges_adapters or any(registry.card(version).kind == "full" for version in registry.versions())


class WeightVersion:
    """Version of the weights that a server has now; for one event loop.

    Concurrent callers share a request, if it starts after their call; it ends with the last of them that is cancelled.
    """

    def __init__(self, ask: Callable[[], Awaitable[str | None]]) -> None:
        self.last: str | None = None
        """Version in the last response."""
        self._ask = ask
        self._running: asyncio.Task[str | None] | None = None
        self._next: asyncio.Task[str | None] | None = None
        self._callers = Counter[asyncio.Task[str | None]]()

    async def now(self) -> str | None:
        """Return the version from a request that starts after this call; `None` if the server does not report it."""
        if self._next is None:
            self._next = asyncio.create_task(self._after(self._running))
        request = self._next
        self._callers[request] += 1
        try:
            return await asyncio.shield(request)
        finally:
            self._leave(request)

    def _leave(self, request: asyncio.Task[str | None]) -> None:
        """Take one caller from a request, and cancel one that nobody awaits: its connections may be closed next."""
        self._callers[request] -= 1
        if self._callers[request]:
            return
        del self._callers[request]
        request.cancel()
        if self._next is request:
            self._next = None

    async def _after(self, running: asyncio.Task[str | None] | None) -> str | None:
        if running is not None:
            await asyncio.wait([running])
        self._running, self._next = self._next, None
        self.last = await self._ask()
        return self.last


class Answered:
    """Version that answered a request, from the served name and the weights that the server names.

    Args:
        fixed: version of a bare name, if neither the name nor the server tells it.
    """

    def __init__(self, fixed: str | None) -> None:
        self._fixed = fixed
        self._named: set[str] = set()
        """Base URLs of servers that have named the version of their weights."""

    def version(
        self, target: Target, own_url: str, served_name: str, before: str | None, after: str | None, *, keeps: bool
    ) -> str | None:
        """Return the version; `None` if nobody knows it.

        Args:
            own_url: base URL of a target that has none.
            keeps: the target has its weights still, as far as the run tells; of a server that names none, only the run
                tells.
            before: version that the server named before the request; `None` if it named none, or was not asked,
                because versions did not share the name then.
            after: the same, after the request; vLLM answers "default" until the first deploy after its start.
        """
        url = target.base_url or own_url
        if name := versions.served_version(served_name):
            return name
        if before != after and (target.in_place or versions.is_version(after)):
            return None
        if versions.is_version(after):
            self._named.add(url)
            return after
        if target.in_place and url in self._named:
            return None  # it has restarted, and may have any weights
        if after is None and not keeps:
            return None
        expected = self._fixed or target.version or versions.BASE
        if after is not None and self._fixed is None and expected != versions.BASE:
            return None  # it has started after the deploy of the live version
        return expected


def _stamps(registry: Registry | None) -> list[tuple[int, ...] | None]:
    """Return stamps of what a run says of its versions and the live one, which change when that does."""
    if registry is None:
        return []
    return [_stamp(path) for path in (registry.live_path, registry.policies_dir, registry.swapped_path)]


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Return a stamp that changes when a file is replaced, or a directory's entries are."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
