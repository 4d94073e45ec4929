"""Judge structured output: the answer must be JSON that fits a JSON Schema.

The check runs in a worker process, because a `pattern` in the schema may take for ever on a hostile answer.
"""

from __future__ import annotations

import json

from r3agent._util.imports import require_installed
from r3agent.errors import ConfigError
from r3agent.records.trajectory import Task, Verdict
from r3agent.verifiers.fences import block_or_all
from r3agent.verifiers.interface import needed
from r3agent.verifiers.worker import Worker

LANGUAGES = r"json[c5l]?"
WHOLE = ("{}", "[]")
"""First and last character of a reply that is JSON as a whole, with whatever tags and fences in its texts."""

_check = Worker("r3agent.verifiers.child.schema_check")


class JsonSchema:
    """Validate the answer against `task.info["schema"]`, in the dialect of its `$schema`, by default 2020-12.

    The schema is an object, or the JSON of one, as tables have it.

    The answer is the last fenced block of JSON, or the whole reply; in `<answer>` tags, if it has them. Prose around
    JSON that is not fenced is not JSON.

    Args:
        max_chars: maximum length; a longer answer fails without being parsed.
        cpu_s: limit of CPU seconds; an answer that takes longer to check fails.
        formats: check `format` too, which is only an annotation by default, like the vocabulary format-assertion of the
            standard: all formats of the draft; a schema with any other is an error.

    Raises:
        ConfigError: `formats`, and a package that checks one of them is not installed.
    """

    def __init__(self, *, max_chars: int = 100_000, cpu_s: float = 5, formats: bool = False) -> None:
        require_installed("jsonschema", "verifiers")
        self.max_chars, self.cpu_s, self.formats = max_chars, cpu_s, formats
        if formats and (unchecked := _check("unchecked_formats")):
            raise ConfigError(
                f"formats = true: nothing installed checks {', '.join(unchecked)}; "
                'pip install "jsonschema[format-nongpl]", or leave formats out'
            )

    def warm_up(self) -> None:
        _check.start()

    def __call__(self, task: Task, answer: str) -> Verdict:
        """Judge an answer.

        Raises:
            RuntimeError: `schema` is not a JSON Schema, refers to an external one, which is not fetched, or has a
                format that its draft does not have, which is to be checked.
        """
        schema, text = needed(task, "schema"), answer.strip()
        schema = schema if isinstance(schema, str) else json.dumps(schema)
        if text[:1] + text[-1:] not in WHOLE:
            text = block_or_all(text, LANGUAGES).strip()
        if len(text) > self.max_chars:
            return Verdict.failed(f"{len(text)} characters; an answer has at most {self.max_chars}")
        try:
            wrong = _check("check", schema, self.formats, text, cpu_s=self.cpu_s)
        except TimeoutError as error:
            return Verdict.failed(f"checking the answer {error}")
        return Verdict.failed(wrong) if wrong else Verdict(passed=True, score=1.0)
