"""Tokens of recorded model calls, as the endpoint counted them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from r3agent.records.span import Span


class Usage(NamedTuple):
    """Tokens of some calls."""

    prompt: int
    cached: int
    """Those of the prompts that were read from the endpoint's cache."""
    sampled: int
    uncounted: int
    """Number of spans whose sampled tokens the endpoint did not count."""


def usage_of(spans: Iterable[Span]) -> Usage:
    """Sum the tokens of recorded calls.

    Siblings that were sampled by one request, which share its latency, have its prompt once, and its sampled tokens
    once if the endpoint counts only their sum.
    """
    requests: set[object] = set()
    prompt = cached = sampled = uncounted = 0
    for span in spans:
        if span.refused:
            continue
        request = span.span_id if span.latency_s is None else (span.parent_id, span.label, span.latency_s)
        is_first = request not in requests
        if is_first:
            requests.add(request)
            prompt += span.prompt_tokens or 0
            cached += min(span.cached_tokens or 0, span.prompt_tokens or 0)
        if span.completion_tokens is not None:
            sampled += span.completion_tokens
        elif span.sibling_tokens is None:
            uncounted += 1
        elif is_first:
            sampled += span.sibling_tokens
    return Usage(prompt, cached, sampled, uncounted)
