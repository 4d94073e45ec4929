"""Judge mathematics: math-verify parses answer and expected answer, LaTeX or plain, and compares them.

It runs in a worker process, because some expressions never end simplifying and math-verify's own limit works in the
main thread alone.
"""

from __future__ import annotations

from r3agent._util.imports import require_installed
from r3agent.records.trajectory import Task, Verdict
from r3agent.verifiers.text import tagged
from r3agent.verifiers.worker import Worker

_compare = Worker("r3agent.verifiers.child.math_compare")


class Math:
    """Compare with `task.info["answer"]`: a text, or a list of which any will do.

    What stands in `<answer>` tags is the answer; without them math-verify looks for it: in a box, after "answer is",
    or the last expression.

    Args:
        max_chars: a longer answer fails unread; of a reply without tags its end is looked at.
        cpu_s: seconds of CPU time that parsing and comparing may take; an answer that takes longer fails.
        digits: decimals that floating-point numbers must agree in.
    """

    def __init__(self, *, max_chars: int = 2_000, cpu_s: float = 5, digits: int = 6) -> None:
        require_installed("math_verify", "math")
        self.max_chars, self.cpu_s, self.digits = max_chars, cpu_s, digits

    def warm_up(self) -> None:
        _compare.start()

    def __call__(self, task: Task, answer: str) -> Verdict:
        """Judge an answer.

        Raises:
            RuntimeError: an expected answer is no mathematics that math-verify can parse.
        """
        expected = task.info["answer"]
        expected = [str(gold) for gold in (expected if isinstance(expected, list) else [expected])]
        content = tagged(answer)
        if content is not None and len(content) > self.max_chars:
            return Verdict.failed(f"{len(content)} characters; an answer has at most {self.max_chars}")
        given = answer[-self.max_chars :] if content is None else content
        try:
            equal, read = _compare("compare", expected, given, content is not None, self.digits, cpu_s=self.cpu_s)
        except TimeoutError as error:
            return Verdict.failed(f"comparing the answer {error}")
        if not equal:
            return Verdict.failed(f"{read} is not {' or '.join(expected)}" if read else "no mathematics in the answer")
        return Verdict(passed=True, score=1.0)
