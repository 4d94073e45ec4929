"""Human verdicts: `person` interrupts the graph to ask for one; `later` leaves the try without a verdict.

`person` needs a checkpointer and a thread. `Command(resume=...)` carries `true` or `false`, a score, or
`{"passed": ..., "feedback": ...}`; for anything else, it asks again. Several answers are judged one after another.
`collect` cannot wait for a person, so `person` is for applications.
"""

from __future__ import annotations

from typing import Any

from langgraph.types import interrupt
from pydantic import ValidationError

from r3agent._util.messages import explain, shorten
from r3agent.records.trajectory import Task, Verdict
from r3agent.verifiers.interface import PENDING, Answer, Pending, verdict_of

REMEDY = 'reply true, false, a score from 0 to 1 (1 passes) or {"passed": true, "feedback": "..."}'


def person(task: Task, answer: Answer) -> Verdict:
    """Interrupt with `{"task": id, "messages": [...], "answer": text, "tool_calls": [...]}`, all of it JSON.

    If it asks again, `refused` has the fault in the last reply.
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
            # Not raised: LangGraph keeps a reply permanently, so every later run of the step would fail on it again.
            fault = f": {explain(error, Verdict)}" if isinstance(error, ValidationError) else ""
            question = {**question, "refused": f"{shorten(reply)} is no verdict{fault}; {REMEDY}"}


def _with_score(reply: dict[str, Any]) -> dict[str, Any]:
    """Add a score, 1 if passed and 0 if failed, to a reply without one."""
    return {"score": float(reply.get("passed") is True), **reply}


def later(task: Task, answer: str) -> Pending:
    """Leave the verdict open: the episode ends after its first try, and is not trained on until it has a verdict."""
    return PENDING
