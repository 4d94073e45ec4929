"""Judge mathematics: `quantities.py` reads numbers, math-verify parses anything else, LaTeX or plain, and compares.

It runs in a worker process, because simplifying some expressions takes for ever, and math-verify's own time limit works
only in the main thread.
"""

from __future__ import annotations

from dataclasses import asdict

from r3agent._util.imports import require_installed
from r3agent.records.trajectory import Task, Verdict
from r3agent.verifiers.interface import needed
from r3agent.verifiers.quantities import read_answer, read_reply
from r3agent.verifiers.text import tagged
from r3agent.verifiers.worker import Worker

_compare = Worker("r3agent.verifiers.child.math_compare")


class Math:
    """Compare with `task.info["answer"]`: a text, or a list of accepted texts.

    The answer is the text in `<answer>` tags, or in the last box. Without them, it is in a last line `#### …`, or
    math-verify looks for "answer is" or the last expression. Of an expected answer, the text after `####` counts.

    Numbers may have thousands separators, exponents, a unit, a currency or a percent sign, as `quantities.py` reads
    them: a missing unit fits any, two known units must be the same, and 50%, 50 and 0.5 are equal. Exact numbers are
    compared exactly. An answer with several candidates, as in "5 or 6", is equal to none of them.

    Args:
        max_chars: maximum length; a longer answer fails without being parsed, a reply without tags is cut to its end.
        cpu_s: limit of CPU seconds; an answer that takes longer to parse and compare fails.
        digits: number of decimals in which floating-point numbers must agree; below 1, of significant digits.
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
        expected = needed(task, "answer")
        expected = [str(gold) for gold in (expected if isinstance(expected, list) else [expected])]
        golds = [asdict(read_answer(gold)) for gold in expected]
        content = tagged(answer)
        if content is not None and len(content) > self.max_chars:
            return Verdict.failed(f"{len(content)} characters; an answer has at most {self.max_chars}")
        given = read_reply(answer[-self.max_chars :]) if content is None else read_answer(content)
        try:
            equal, read = _compare("compare", golds, asdict(given), self.digits, cpu_s=self.cpu_s)
        except TimeoutError as error:
            return Verdict.failed(f"comparing the answer {error}")
        if not equal:
            return Verdict.failed(f"{read} is not {' or '.join(expected)}" if read else "no mathematics in the answer")
        return Verdict(passed=True, score=1.0)
