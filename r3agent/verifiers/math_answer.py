"""Judge mathematics: math-verify parses answer and expected answer, LaTeX or plain, and compares them.

It runs in a worker process, because simplifying some expressions takes for ever, and math-verify's own time limit works
only in the main thread.
"""

from __future__ import annotations

from r3agent._util.imports import require_installed
from r3agent.records.trajectory import Task, Verdict
from r3agent.verifiers.text import tagged
from r3agent.verifiers.worker import Worker

_compare = Worker("r3agent.verifiers.child.math_compare")


class Math:
    """Compare with `task.info["answer"]`: a text, or a list of accepted texts.

    The answer is the text in `<answer>` tags. Without tags, math-verify looks for a box, for "answer is", or for the
    last expression.

    Args:
        max_chars: maximum length; a longer answer fails without being parsed, a reply without tags is cut to its end.
        cpu_s: limit of CPU seconds; an answer that takes longer to parse and compare fails.
        digits: number of decimals in which floating-point numbers must agree.
    """

    def __init__(self, *, max_chars: int = 2_000, cpu_s: float = 5, digits: int = 6) -> None:
        require_installed("math_verify", "math")
        self.max_chars, self.cpu_s, self.digits = max_chars, cpu_s, digits

    def warm_up(self) -> None:
        _compare.start()

    def __call__(self, task: Task, answer: str) -> Verdict:
        """Judge an answer.

        Raises:
            RuntimeError: math-verify cannot parse an expected answer.
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
