"""Judge by reasoning-gym's own scorers; an answer passes at score 1, and lower scores are kept.

They run in a worker process, which is killed if an answer costs too much time or memory. `child/reasoning_gym.py` keeps
unsafe answers from them.
"""

from __future__ import annotations

from r3agent._util.imports import require_installed
from r3agent.records.trajectory import Task, Verdict
from r3agent.verifiers.interface import needed
from r3agent.verifiers.text import tagged_or_all
from r3agent.verifiers.worker import Worker

child = Worker("r3agent.verifiers.child.reasoning_gym")
"""Worker shared by the task source, the verifier and all their threads."""


class ReasoningGym:
    """Judge the last `<answer>…</answer>`, or the whole reply, with the scorer of `task.info["generator"]`.

    Args:
        max_chars: an answer longer than this, and than four times the known one, fails without being scored.
        cpu_s: limit of CPU seconds; an answer that takes longer to score fails.
    """

    def __init__(self, *, max_chars: int = 10_000, cpu_s: float = 5) -> None:
        require_installed("reasoning_gym", "reasoning-gym")
        self.max_chars, self.cpu_s = max_chars, cpu_s

    def warm_up(self) -> None:
        child.start()

    def __call__(self, task: Task, answer: str) -> Verdict:
        generator, params, entry = (needed(task, key) for key in ("generator", "params", "entry"))
        given = tagged_or_all(answer)
        if len(given) > max(self.max_chars, 4 * len(entry["answer"] or "")):
            return Verdict.failed(f"{len(given)} characters; an answer has at most {self.max_chars}")
        try:
            report = child("score", generator, params, entry, given, cpu_s=self.cpu_s)
        except TimeoutError as error:
            return Verdict.failed(f"scoring the answer {error}")
        if "why" in report:
            return Verdict.failed(report["why"])
        score = report["score"]
        return Verdict(passed=score == 1, score=score, feedback=None if score == 1 else f"scores {score:.2f}")
