"""Verifier of Countdown that is wrong about a share of the answers, as one in production may be."""

from __future__ import annotations

import random

from r3agent.records.trajectory import Task, Verdict
from r3agent.verifiers.countdown import countdown

NOISY = "benchmarks.noisy:noisy"
"""Name of the verifier in settings."""


def noisy(task: Task, answer: str, *, noise: float = 0.0, seed: int = 0) -> Verdict:
    """Judge an answer as `countdown` does, and turn a share of the verdicts round.

    The task and the answer decide which, so that an answer always gets the same verdict, and a larger noise turns those
    that a smaller one turns too. An answer that was cut off fails before it is judged, whatever the noise.

    Args:
        noise: share of the verdicts that are wrong.
        seed: draws those.
    """
    verdict = countdown(task, answer)
    if random.Random(f"{seed}/{task.id}/{answer}").random() >= noise:
        return verdict
    return verdict.model_copy(update={"passed": not verdict.passed, "score": float(not verdict.passed)})
