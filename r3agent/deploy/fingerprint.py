"""Verify that a server serves the trained weights, by comparing its logprobs with the checkpoint's own.

The mean absolute gap identifies the weights. A server in bfloat16 is about 0.03 nats from a float32 checkpoint, and up
to 0.07 with an adapter: it adds the adapter's small output to a large one, and rounds a part of it away. Weights that
arrived in part, or not at all, are further than that from the new weights, or nearer to the old ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import fmean
from typing import Literal, TypeAlias

from r3agent.deploy.server import Server
from r3agent.errors import DeployError
from r3agent.records.trajectory import Record
from r3agent.store.registry import FingerprintSequence, Registry

TOLERANCE = 0.1
"""Default limit of the mean gap, in nats per token."""
MAX_POSITIONS = 16
"""Tokens to measure in a sequence whose card does not name any; each takes one request."""
AT_ONCE = 8

Place: TypeAlias = tuple[FingerprintSequence, int]
"""A sequence, and the position of the token in it to measure."""
Recognition: TypeAlias = Literal["arrived", "indistinguishable", "old", "other"]


class FingerprintReport(Record):
    """Comparison of a server's logprobs with a version's fingerprint."""

    served_name: str
    verdict: Recognition
    """`indistinguishable`: within the tolerance, but as near to the old weights, so the server may have either."""
    gap: float
    """Mean |server - checkpoint| logprob gap, in nats per token."""
    parent_gap: float | None
    """The same gap to the weights that training started from."""
    tolerance: float
    n_tokens: int


def check(
    server: Server, served_name: str, fingerprint: Sequence[FingerprintSequence], *, tolerance: float = TOLERANCE
) -> FingerprintReport:
    """Check that a server answers with the weights of a fingerprint.

    Raises:
        DeployError: the server has the old weights or other ones, or it cannot be queried.
    """
    report = measure(server, served_name, fingerprint, tolerance=tolerance)
    if report.verdict in ("old", "other"):
        raise DeployError(_failure(report))
    return report


def measure(
    server: Server, served_name: str, fingerprint: Sequence[FingerprintSequence], *, tolerance: float = TOLERANCE
) -> FingerprintReport:
    """Compare the server's logprobs with those on the card.

    Raises:
        DeployError: the server cannot be queried.
    """
    places = places_of(fingerprint)

    def served_logprob(place: Place) -> float:
        token_ids_T, t = place[0].token_ids_T, place[1]
        return server.next_logprob(served_name, token_ids_T[:t], token_ids_T[t])

    with ThreadPoolExecutor(AT_ONCE) as pool:
        served = list(pool.map(served_logprob, places))
    if not any(served):
        raise DeployError(
            f"{served_name}: the logprob of every token is 0, as if no other were possible: the server's logprobs are "
            "those after its sampling masks; start vLLM with --logprobs-mode raw_logprobs, its default"
        )
    return recognise(served_name, places, served, tolerance=tolerance)


def places_of(fingerprint: Sequence[FingerprintSequence]) -> list[Place]:
    """List the places to measure: sequences, each with a position."""
    return [(s, t) for s in fingerprint for t in s.positions_K or positions(len(s.token_ids_T))]


def recognise(
    name: str, places: Sequence[Place], logprobs: Sequence[float], *, tolerance: float = TOLERANCE
) -> FingerprintReport:
    """Recognise weights by their logprobs at the places of a fingerprint."""
    measured = list(zip(logprobs, places, strict=True))
    gaps = [abs(logprob - s.logprobs_T[t]) for logprob, (s, t) in measured]
    parent_gaps = [abs(logprob - old[t]) for logprob, (s, t) in measured if (old := s.parent_logprobs_T) is not None]
    gap = fmean(gaps)
    parent_gap = fmean(parent_gaps) if len(parent_gaps) == len(gaps) else None
    return FingerprintReport(
        served_name=name,
        verdict=_verdict(gap, parent_gap, tolerance),
        gap=gap,
        parent_gap=parent_gap,
        tolerance=tolerance,
        n_tokens=len(gaps),
    )


def positions(length: int) -> list[int]:
    """Choose the positions to measure: all but the first, or `MAX_POSITIONS` of them, evenly spread."""
    step = max(1, (length - 1) / MAX_POSITIONS)
    return sorted({round(length - 1 - i * step) for i in range(MAX_POSITIONS)} & set(range(1, length)))


def fingerprint_of(registry: Registry, version: str) -> tuple[FingerprintSequence, ...]:
    """Return a version's own fingerprint or, with the roles swapped, that of a version trained from it.

    Empty if neither exists.
    """
    if own := registry.card(version).fingerprint:
        return own
    for card in map(registry.card, registry.versions()):
        if card.parent == version and card.fingerprint:
            return tuple(
                s.model_copy(update={"logprobs_T": old, "parent_logprobs_T": s.logprobs_T})
                for s in card.fingerprint
                if (old := s.parent_logprobs_T) is not None
            )
    return ()


def _verdict(gap: float, parent_gap: float | None, tolerance: float) -> Recognition:
    """Recognise weights within the tolerance that are at least twice as near as the other weights."""
    if parent_gap is not None and parent_gap <= tolerance and 2 * parent_gap < gap:
        return "old"
    if not gap <= tolerance:
        return "other"
    if parent_gap is None or 2 * gap < parent_gap:
        return "arrived"
    return "indistinguishable"


def _failure(report: FingerprintReport) -> str:
    numbers = f"{report.gap:.3g} nats per token from the checkpoint's, the limit is {report.tolerance:g}"
    if report.parent_gap is not None:
        numbers += f", and {report.parent_gap:.3g} from the old weights'"
    if report.verdict == "old":
        return (
            f"{report.served_name}: the server still serves the old weights, its logprobs are {numbers}; "
            "look for a failed load in the server's log"
        )
    return (
        f"{report.served_name}: the weights arrived in part, or are others, the server's logprobs are {numbers}; "
        "check that it serves the base model of this run, or raise deploy.tolerance if it is in bfloat16 or quantized"
    )
