"""A person decides: the graph stops at the answer with a LangGraph `interrupt`, and goes on with the verdict.

It needs a checkpointer and a thread. `Command(resume=...)` carries `true` or `false`, a score, or
`{"passed": ..., "feedback": ...}`; what is no verdict is asked for again. Of several answers, one is asked for after
the other. A collection cannot wait for a person, so this is for applications.
"""

from __future__ import annotations

from typing import Any

from langgraph.types import interrupt
from pydantic import ValidationError

from r3agent.records.trajectory import Task, Verdict
from r3agent.verifiers import Answer, verdict_of


def person(task: Task, answer: Answer) -> Verdict:
    """Asks with `{"task": id, "messages": [...], "answer": text, "tool_calls": [...]}`, all of it JSON.

    Asked again, it also has `refused`: what was wrong with the last reply.
    """
    question: dict[str, Any] = {
        "task": task.id,
        "messages": list(task.messages),
        "answer": str(answer),
        "tool_calls": list(answer.tool_calls),
    }
    while True:
        said: Any = interrupt(question)
        try:
            return Verdict.model_validate(_filled(said)) if isinstance(said, dict) else verdict_of(said)
        except (TypeError, ValidationError) as error:
            # Not raised: LangGraph keeps a reply for good, and every later run of the step would meet it again.
            question = {**question, "refused": f"{said!r} is no verdict: {error}"}


def _filled(said: dict[str, Any]) -> dict[str, Any]:
    """A person's word for passed or failed is a score too."""
    return {"score": float(said.get("passed") is True), **said}
