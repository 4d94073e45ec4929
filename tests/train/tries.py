"""Tries of several steps, recorded from the tiny policy with random tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from r3agent.records.trajectory import Label, Span, Task, Trajectory, Verdict
from tests.train.recorded import logprobs

TASK = Task(id="steps", messages=({"role": "user", "content": "play"},))
"""Task of the first tries with seed 0."""


class TryRecorder:
    """Recorder of one try: its steps continue one another unless a step is given another prompt."""

    def __init__(self, model: Any, seed: int = 0) -> None:
        self.model, self.rng = model, random.Random(seed)

    def tokens(self, low: int = 1, high: int = 6) -> list[int]:
        return [self.rng.randrange(7, 100) for _ in range(self.rng.randint(low, high))]

    def step(self, above: Span | None, prompt: Sequence[int], *, label: Label = "attempt", **fields: Any) -> Span:
        ids = self.tokens()
        exact = {
            "prompt_token_ids": tuple(prompt),
            "token_ids": tuple(ids),
            "logprobs": tuple(logprobs(self.model, prompt, ids)),
            "completion_tokens": len(ids),
            "capability": "trainable-exact",
        }
        whole = {"text": "", "model": "tiny", "policy_version": "v0000", "sampling": {"temperature": 1.0}}
        parent_id = None if above is None else above.span_id
        return Span.model_validate({**whole, **exact, "label": label, "parent_id": parent_id, **fields})

    def steps(
        self, prompt: Sequence[int], n: int, passed: bool, *, above: Span | None = None, label: Label = "attempt"
    ) -> list[Span]:
        """Record `n` steps, with a result of a tool between each two; the fourth is asked with a shorter history."""
        found: list[Span] = []
        whole = list(prompt)
        for i in range(n):
            last = found[-1] if found else above
            found.append(self.step(last, whole, label=label))
            result = self.tokens(3, 8)
            whole = [*prompt, *result] if i == 2 else [*whole, *(found[-1].token_ids or ()), *result]
        verdict = Verdict(passed=passed, score=float(passed))
        return [*found[:-1], found[-1].model_copy(update={"verdict": verdict})]


def first_tries(model: Any, steps: Sequence[int] = (1, 3, 2, 4), seed: int = 0) -> list[Trajectory]:
    """Record first tries of one task, with these numbers of steps; every other one passed."""
    recorder = TryRecorder(model, seed)
    prompt, task = recorder.tokens(9, 12), TASK.model_copy(update={"id": f"steps{seed or ''}"})
    return [
        Trajectory(trajectory_id=f"e{i}{seed or ''}", task=task, spans=tuple(recorder.steps(prompt, n, i % 2 == 0)))
        for i, n in enumerate(steps)
    ]
