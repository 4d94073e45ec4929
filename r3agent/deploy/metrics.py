"""Requests under way on a vLLM server, from its /metrics."""

from __future__ import annotations

from typing import NamedTuple

REQUESTS = ("vllm:num_requests_running", "vllm:num_requests_waiting")
ADAPTERS = "vllm:lora_requests_info"


class ServerLoad(NamedTuple):
    """Requests that are not finished."""

    requests: int
    adapters: frozenset[str]
    """Served names in use."""


def read_load(metrics: str) -> ServerLoad | None:
    """Read vLLM's metrics; `None` for any other text."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        samples = [sample for family in text_string_to_metric_families(metrics) for sample in family.samples]
    except ValueError:
        return None
    counts = [sample.value for sample in samples if sample.name in REQUESTS]
    if not counts:
        return None
    # One sample for each combination of adapters there ever was; its value is when that was, in seconds since 1970.
    latest = max((s for s in samples if s.name == ADAPTERS), key=lambda s: s.value, default=None)
    labels = latest.labels if latest else {}
    names = ",".join(labels.get(f"{state}_lora_adapters", "") for state in ("running", "waiting")).split(",")
    return ServerLoad(int(sum(counts)), frozenset(filter(None, names)))
