"""Shared by the tests of this folder: one small task, and a look at the tree that an episode grew."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from r3agent import OpenAIPolicy, Task, Trajectory
from r3agent.testing import ScriptedEndpoint

TASK = Task(id="t", messages=({"role": "user", "content": "2 + 2?"},))
INPUT: Any = {"task": TASK.model_dump(mode="json")}
FAILS_ONCE: Any = {"attempt": "wrong", "reflect": "think of sums", "retry": "right"}
CHAIN = ["attempt", "reflect", "retry"]


def right(task: Task, answer: str) -> bool:
    return answer == "right"


def on_thread(name: str = "1", **more: Any) -> Any:
    return {"configurable": {"thread_id": name}, **more}


def tree(output: Mapping[str, Any]) -> Trajectory:
    """The trajectory, which refuses a span that is there twice."""
    return Trajectory.model_validate(output["trajectory"])


def labels(output: Mapping[str, Any]) -> list[str]:
    return [span.label for span in tree(output).spans]


@asynccontextmanager
async def policy_at(endpoint: ScriptedEndpoint, **settings: Any) -> AsyncIterator[OpenAIPolicy]:
    """Closed for the running loop, and for `invoke`."""
    async with OpenAIPolicy(endpoint.url, "scripted", **settings) as policy:
        try:
            yield policy
        finally:
            policy.close()
