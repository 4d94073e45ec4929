"""Countdown by tool calls: `combine` two of the numbers at a time, until the one that is left equals the target.

The problems are those of `countdown`, with the same ids: a problem belongs to the same split in both games.

    build_graph(policy=policy, tools=[combine], environment=board, verifier=find_verifier("countdown_steps"))
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any

from r3agent.records.trajectory import Message, Task
from r3agent.tasks.countdown import Step, problem_id, steps
from r3agent.tasks.countdown import generate as generate_problems
from r3agent.verifiers.countdown_steps import Board

PROMPT = (
    "Using the numbers {numbers}, make one number that equals {target}. Each call of the tool replaces two of your "
    "numbers by the result of an operation on them: + - * /, where / must leave no remainder. Use every number."
)

TOOLS: tuple[dict[str, Any], ...] = (
    {
        "type": "function",
        "function": {
            "name": "combine",
            "description": "Replace two of the numbers by the result of an operation on them, a whole number.",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "integer", "description": "One of the numbers."},
                    "op": {"type": "string", "enum": ["+", "-", "*", "/"]},
                    "b": {"type": "integer", "description": "Another one of the numbers."},
                },
                "required": ["a", "op", "b"],
            },
        },
    },
)


@wraps(generate_problems, assigned=())
def generate(*args: Any, **settings: Any) -> Iterator[Task]:
    """Yield distinct solvable problems; the arguments are those of `countdown.generate`."""
    for problem in generate_problems(*args, **settings):
        yield make_task(problem.info["numbers"], problem.info["target"])


def make_task(given: list[int], target: int) -> Task:
    """Make the task of a problem; its gold answer has the moves of a solution, if there is one."""
    moves = solve(tuple(given), target, set())
    return Task(
        id=problem_id(given, target),
        messages=({"role": "user", "content": PROMPT.format(numbers=given, target=target)},),
        tools=TOOLS,
        info={"numbers": given, "target": target},
        gold=None if moves is None else called(*moves),
    )


def called(*moves: Step) -> Message:
    """Make the assistant message that calls `combine` for each move."""
    arguments = [json.dumps({"a": move.left, "op": move.op, "b": move.right}) for move in moves]
    calls = [
        {"id": f"move-{i}", "type": "function", "function": {"name": "combine", "arguments": text}}
        for i, text in enumerate(arguments, start=1)
    ]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def solve(numbers: tuple[int, ...], target: int, tried: set[tuple[int, ...]]) -> list[Step] | None:
    """Return the moves that lead from the numbers to the target."""
    if len(numbers) == 1 or (known := tuple(sorted(numbers))) in tried:
        return [] if numbers == (target,) else None
    tried.add(known)
    for step in steps(numbers):
        if (further := solve((step.value, *step.rest), target, tried)) is not None:
            return [step, *further]
    return None


@asynccontextmanager
async def board(task: Task) -> AsyncGenerator[Board]:
    """Make the world of one try: the numbers of the task."""
    yield Board(task.info["numbers"], task.info["target"])


def combine(a: int, op: str, b: int, environment: Board) -> str:
    """Replace two of the numbers by the result of an operation on them, a whole number."""
    return environment.combine(a, op, b)
