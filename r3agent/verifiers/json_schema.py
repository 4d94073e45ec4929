"""Judge structured output: the answer must be JSON that fits a JSON Schema.

The check runs in a worker process, because a `pattern` in the schema may take for ever on a hostile answer.
"""

from __future__ import annotations

import json

from r3agent._util.imports import require_installed
from r3agent.records.trajectory import Task, Verdict
from r3agent.verifiers.text import tagged
from r3agent.verifiers.worker import Worker

FENCE = "```"

_check = Worker("r3agent.verifiers.child.schema_check")


class JsonSchema:
    """Validate the answer against `task.info["schema"]`, in the dialect of its `$schema`, by default 2020-12.

    The answer is the text in `<answer>` tags, else in the last fenced block, else the whole reply.

    Args:
        max_chars: maximum length; a longer answer fails without being parsed.
        cpu_s: limit of CPU seconds; an answer that takes longer to check fails.
        formats: check `format` too, which is only an annotation in the standard.
    """

    def __init__(self, *, max_chars: int = 100_000, cpu_s: float = 5, formats: bool = False) -> None:
        require_installed("jsonschema", "verifiers")
        self.max_chars, self.cpu_s, self.formats = max_chars, cpu_s, formats

    def warm_up(self) -> None:
        _check.start()

    def __call__(self, task: Task, answer: str) -> Verdict:
        """Judge an answer.

        Raises:
            RuntimeError: `schema` is not a JSON Schema, or refers to an external one, which is not fetched.
        """
        schema, text = task.info["schema"], _json_in(answer)
        if len(text) > self.max_chars:
            return Verdict.failed(f"{len(text)} characters; an answer has at most {self.max_chars}")
        try:
            wrong = _check("check", json.dumps(schema), self.formats, text, cpu_s=self.cpu_s)
        except TimeoutError as error:
            return Verdict.failed(f"checking the answer {error}")
        return Verdict.failed(wrong) if wrong else Verdict(passed=True, score=1.0)


def _json_in(reply: str) -> str:
    content = tagged(reply)
    text = (reply if content is None else content).strip()
    before, closed, _ = text.rpartition(FENCE)
    _, opened, block = before.rpartition(FENCE)
    if not closed or not opened:
        return text
    language, _, rest = block.partition("\n")
    return rest if language.strip().lower() in ("", "json") else text
