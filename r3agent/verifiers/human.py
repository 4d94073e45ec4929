"""Verdicts of people: `person` interrupts the graph at the answer and asks; `later` leaves the try without a verdict.

`person` needs a checkpointer and a thread. `Command(resume=...)` carries `true` or `false`, a score, or
`{"passed": ..., "feedback": ...}`; anything else is refused and asked for again. Several answers are asked for one
after the other. A collection cannot wait for a person, so `person` is for applications.
"""

from __future__ import annotations

from typing import Any

from langgraph.types import interrupt
from pydantic import ValidationError

from r3agent._util.messages import explain
from r3agent.records.trajectory import Task, Verdict
from r3agent.verifiers.interface import PENDING, Answer, Pending, verdict_of


def person(task: Task, answer: Answer) -> Verdict:
    """Ask with `{"task": id, "messages": [...], "answer": text, "tool_calls": [...]}`, all of it JSON.

    Asked again, it also has `refused`: what was wrong with the last reply.
    """
    question: dict[str, Any] = {
        "task": task.id,
        "messages": list(task.messages),
        "answer": str(answer),
        "tool_calls": list(answer.tool_calls),
    }
    while True:
        reply: Any = interrupt(question)
        try:
            return Verdict.model_validate(_with_score(reply)) if isinstance(reply, dict) else verdict_of(reply)
        except (TypeError, ValidationError) as error:
            # Not raised: LangGraph keeps a reply for good, and every later run of the step would meet it again.
            question = {**question, "refused": f"{reply!r} is no verdict: {explain(error, Verdict)}"}


def _with_score(reply: dict[str, Any]) -> dict[str, Any]:
    """Add the score of passed or failed to a reply without one."""
    return {"score": float(reply.get("passed") is True), **reply}


def later(task: Task, answer: str) -> Pending:
    """Leave the verdict open: the episode ends after its first try, and is not trained on before it has one."""
    return PENDING
