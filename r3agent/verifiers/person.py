"""A person decides: the graph stops at the answer with a LangGraph `interrupt`, and goes on with the verdict.

It needs a checkpointer and a thread. `Command(resume=...)` carries `true` or `false`, a score, or
`{"passed": ..., "feedback": ...}`. Of several answers, one is asked for after the other. A collection cannot wait for
a person, so this is for applications.
"""

from __future__ import annotations

from typing import Any

from langgraph.types import interrupt

from r3agent.trajectory import Task, Verdict
from r3agent.verifiers import Answer, Judgement


def person(task: Task, answer: Answer) -> Judgement:
    """Asks with `{"task": id, "messages": [...], "answer": text, "tool_calls": [...]}`, all of it JSON."""
    said: Any = interrupt(
        {
            "task": task.id,
            "messages": list(task.messages),
            "answer": str(answer),
            "tool_calls": list(answer.tool_calls),
        }
    )
    if isinstance(said, dict):
        return Verdict.model_validate({"score": float(said.get("passed") is True), **said})
    return said
