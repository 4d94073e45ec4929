"""`NAME@live` in the requests of an application's own client."""

from __future__ import annotations

from pathlib import Path

from r3agent.errors import ConfigError
from r3agent.policy.live import LIVE, LivePolicy, Target
from r3agent.recording.episode import Episode
from r3agent.store.registry import Registry


class LiveName:
    """Live version of a run's policy; an episode keeps the one of its first request.

    Raises:
        ConfigError: nothing is live.
    """

    def __init__(self, registry: Registry | str | Path) -> None:
        registry = registry if isinstance(registry, Registry) else Registry(registry)
        self._live = LivePolicy(None, registry)

    def target(self, model: str, episode: Episode | None) -> Target:
        """Return the version that a request of `model` goes to; weights that are reloaded in place cannot be kept.

        Raises:
            ConfigError: it is the live version of another policy.
        """
        if model != (own := f"{self._live.name}@{LIVE}"):
            raise ConfigError(f"model = {model!r}: the registry of this client is that of {own}; ask for that")
        target = self._live.now()
        return target if episode is None or target.in_place else episode.pins.setdefault(self, target)

    def now(self) -> Target:
        """Return the version that is live at present."""
        return self._live.now()

    def keeps(self, target: Target) -> bool:
        """Return True if a target that was read earlier still has its weights, as far as the run tells."""
        return self._live.keeps(target)
