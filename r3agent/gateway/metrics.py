"""Prometheus metrics of a gateway."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counts of one gateway.

    Args:
        n_open: counts the open episodes.
    """

    def __init__(self, n_open: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self._calls = Counter("r3agent_gateway_calls", "Recorded calls.", ("route", "outcome"), registry=self._registry)
        self._seconds = Histogram(
            "r3agent_gateway_call_seconds", "Time of a call.", buckets=BUCKETS_S, registry=self._registry
        )
        open_ = Gauge("r3agent_gateway_open_episodes", "Episodes that take calls.", registry=self._registry)
        open_.set_function(n_open)

    def call(self, route: str, seconds: float, *, is_answered: bool) -> None:
        self._calls.labels(route, "answered" if is_answered else "failed").inc()
        self._seconds.observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)
