"""Verifiers, which decide success: by name, and their interface."""

from r3agent.verifiers.catalogue import KINDS, VERIFIERS, find_verifier
from r3agent.verifiers.interface import (
    PENDING,
    Answer,
    Judgement,
    Pending,
    Verifier,
    close,
    judge,
    verdict_of,
    warm_up,
)

__all__ = [
    "KINDS",
    "PENDING",
    "VERIFIERS",
    "Answer",
    "Judgement",
    "Pending",
    "Verifier",
    "close",
    "find_verifier",
    "judge",
    "verdict_of",
    "warm_up",
]
