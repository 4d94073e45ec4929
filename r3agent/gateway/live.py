"""Terms of the calls of a policy: its live version in a run, or its one served name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from r3agent.policy.live import LIVE, LivePolicy
from r3agent.recording.terms import CallTerms
from r3agent.store.registry import Registry

MakeTerms: TypeAlias = Callable[[], CallTerms | None]
"""Maker of the terms of each try of one episode."""

ANY_NAME = "policy"
"""Model name that means the policy, whatever it is called."""


def any_model() -> Callable[[], Awaitable[MakeTerms]]:
    """Record the calls of every model as the policy's."""

    async def terms() -> MakeTerms:
        return lambda: None

    return terms


def one_model(name: str) -> Callable[[], Awaitable[MakeTerms]]:
    """Record the calls of one served name as the policy's, and those of other models as not."""

    async def terms() -> MakeTerms:
        return lambda: CallTerms(names=frozenset({name, ANY_NAME}), model=name)

    return terms


def live_model(run: str | Path) -> Callable[[], Awaitable[MakeTerms]]:
    """Send the calls of the policy to the version that is live in a run when their episode begins.

    Raises:
        ConfigError: nothing is live there.
    """
    registry = Registry(run)
    name = registry.card(registry.live).name if registry.live is not None else ""
    live = LivePolicy(name, registry)
    names = frozenset({name, f"{name}@{LIVE}", ANY_NAME})

    async def terms() -> MakeTerms:
        target = await live.target()
        where: dict[str, Any] = {"model": target.model, "base_url": target.base_url, "version": target.version}
        return lambda: CallTerms(names=names, holds=partial(live.keeps, target), **where)

    return terms
