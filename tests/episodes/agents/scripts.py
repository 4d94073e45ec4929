"""Shared by the tests of this folder: answers that call tools, and the worlds of tries."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from r3agent import Generation, Task, Trajectory, build_graph
from r3agent.testing import ScriptedPolicy

TASK: Any = {"task": {"id": "t", "messages": [{"role": "user", "content": "Add up to 4."}]}}
ANSWER = "the sum is 4"


def calling(*calls: tuple[str, Any], text: str = "", **fields: Any) -> Generation:
    """An answer with tool calls; arguments that are text are sent as they are."""
    return Generation(
        text=text,
        model="scripted",
        finish_reason=fields.pop("finish_reason", "tool_calls"),
        tool_calls=tuple(
            {
                "id": f"call-{i}",
                "type": "function",
                "function": {"name": name, "arguments": given if isinstance(given, str) else json.dumps(given)},
            }
            for i, (name, given) in enumerate(calls)
        ),
        **fields,
    )


def answers(*steps: Any) -> ScriptedPolicy:
    """A policy that answers each try with `steps`, and reflects in between."""

    def reply(messages: Sequence[Any]) -> Any:
        said = [message["role"] for message in messages]
        first = max(i for i, message in enumerate(messages) if message["role"] == "user" and not _is_fault(message))
        return steps[said[first:].count("assistant")]

    return ScriptedPolicy({"attempt": reply, "retry": reply, "blind_retry": reply, "reflect": "I should add."})


def _is_fault(message: Any) -> bool:
    return str(message["content"]).startswith("Error: ")


class Worlds:
    """A factory of worlds, each a list, which remembers them and how many are open."""

    def __init__(self) -> None:
        self.made: list[list[Any]] = []
        self.n_open = 0

    def __call__(self, task: Task) -> AbstractAsyncContextManager[list[Any]]:
        return self._world(task)

    @asynccontextmanager
    async def _world(self, task: Task) -> AsyncGenerator[list[Any]]:
        self.made.append([])
        self.n_open += 1
        try:
            yield self.made[-1]
        finally:
            self.n_open -= 1


def always(task: Task, answer: str) -> bool:
    return True


async def episode(policy: Any, *, verifier: Any = always, task: Any = TASK, **given: Any) -> Trajectory:
    output = await build_graph(policy=policy, verifier=verifier, **given).compile().ainvoke(task)
    return Trajectory.model_validate(output["trajectory"])


async def told(tool: Any, given: Any = "{}", **settings: Any) -> str:
    """The result of a tool, as the policy reads it."""
    name = getattr(tool, "name", None) or getattr(tool, "__name__", None) or tool.definition["function"]["name"]
    tree = await episode(answers(calling((name, given)), ANSWER), tools=[tool], max_attempts=1, **settings)
    assert [span.label for span in tree.spans] == ["attempt", "attempt"]
    [message] = tree.spans[1].request
    return message["content"]
