"""What vLLM's /metrics say of the requests under way."""

from __future__ import annotations

import re
from typing import NamedTuple

REQUESTS = re.compile(r"^vllm:num_requests_(?:running|waiting)\{[^}]*\} (\S+)$", re.M)
ADAPTERS = re.compile(r"^vllm:lora_requests_info\{([^}]*)\} (\S+)$", re.M)
NAMES = re.compile(r'(?:running|waiting)_lora_adapters="([^"]*)"')


class Busy(NamedTuple):
    """Requests that are not finished."""

    requests: int
    adapters: frozenset[str]
    """Served names in use."""


def busy(metrics: str) -> Busy | None:
    """`None` where the text is not vLLM's metrics."""
    counts = REQUESTS.findall(metrics)
    if not counts:
        return None
    # One line for each combination of adapters there ever was; its value is when that was, in seconds since 1970.
    latest = max(ADAPTERS.findall(metrics), key=lambda line: float(line[1]), default=("", "0"))[0]
    names = {name for listed in NAMES.findall(latest) for name in listed.split(",") if name}
    return Busy(int(sum(map(float, counts))), frozenset(names))
