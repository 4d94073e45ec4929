"""The game by tool calls: its rules, its world, its verdict."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from r3agent.records.trajectory import Task
from r3agent.tasks import find_tasks
from r3agent.tasks.countdown import Step
from r3agent.tasks.countdown import generate as generate_problems
from r3agent.tasks.countdown_steps import board, called, combine, generate, make_task
from r3agent.verifiers import find_verifier
from r3agent.verifiers.interface import Answer

TASK = make_task([3, 5, 7], 56)
judge: Any = find_verifier("countdown_steps")


def play(task: Task, *moves: tuple[Any, Any, Any]) -> tuple[list[str], bool]:
    """The results of moves in a fresh world, and the verdict on it."""

    async def in_world() -> tuple[list[str], bool]:
        async with board(task) as world:
            results = [combine(*move, environment=world) for move in moves]
            return results, judge(task, Answer("Done"), world).passed

    return asyncio.run(in_world())


def test_countdown_steps_has_the_problems_of_countdown() -> None:
    tasks, problems = find_tasks("countdown_steps", 20, seed=4), list(generate_problems(20, seed=4))
    assert [(t.id, t.info) for t in tasks] == [(p.id, p.info) for p in problems]
    assert {tool["function"]["name"] for task in tasks for tool in task.tools} == {"combine"}


@pytest.mark.parametrize("numbers", [2, 3, 5])
def test_countdown_steps_gold_answers_pass(numbers: int) -> None:
    for task in generate(20, seed=1, numbers=numbers):
        assert task.gold is not None
        assert judge(task, Answer.of(task.gold)).passed


def test_make_task_of_an_unsolvable_problem_has_no_gold() -> None:
    assert make_task([1, 1], 7).gold is None


def test_combine_plays_to_the_target_or_a_dead_end() -> None:
    won = ["left: 8, 7", "left: 56: the target is reached"]
    assert play(TASK, (3, "+", 5), (8, "*", 7)) == (won, True)
    lost = ["left: 35, 3", "left: 32: the target is missed", "refused: 32 is not there; left: 32"]
    assert play(TASK, (5, "*", 7), (35, "-", 3), (32, "+", 32)) == (lost, False)


@pytest.mark.parametrize(
    ("move", "reason"),
    [
        ((9, "+", 5), "9 is not there"),
        ((5, "+", 5), "5 is not there"),
        (("3", "+", 5), "'3' is not there"),
        ((True, "+", 5), "True is not there"),
        ((None, None, None), "None is not there"),
        (([3], "+", 5), "[3] is not there"),
        ((3, "-", 5), "3 - 5 is below 1"),
        ((7, "/", 3), "7 / 3 is not a whole number"),
        ((3, "**", 5), "'**' is none of + - * /"),
        ((3, ["+"], 5), "['+'] is none of + - * /"),
        ((3, "x" * 10_000, 5), "is none of"),
    ],
)
def test_combine_tells_why_a_move_is_refused(move: Any, reason: str) -> None:
    (refused, *_), passed = play(TASK, move, (3, "+", 5), (8, "*", 7))
    assert refused.startswith("refused: ")
    assert reason in refused
    assert refused.endswith("; left: 3, 5, 7")
    assert len(refused) < 300
    assert passed  # it changed nothing


def test_countdown_steps_judges_calls_where_there_is_no_world() -> None:
    moves = [Step(3, "+", 5, 8, (7,)), Step(8, "*", 7, 56, ())]
    good = Answer.of(called(*moves))
    assert judge(TASK, good).passed
    half = judge(TASK, Answer.of(called(*moves[:1])))
    assert (half.passed, half.feedback) == (False, "left: 8, 7, where 56 should be the one number that is left")
    assert not judge(TASK, Answer("<answer> (3 + 5) * 7 </answer>")).passed
    done = Answer("Done")
    done.messages = tuple(called(move) for move in moves)
    assert judge(TASK, done, {"messages": []}).passed


@pytest.mark.parametrize(
    "arguments", ["", "{", "[1]", "null", "[" * 100_000, '{"a": 3}', '{"a": {}, "op": 1, "b": []}']
)
def test_countdown_steps_fails_broken_calls(arguments: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "combine", "arguments": arguments}}
    assert not judge(TASK, Answer.of({"role": "assistant", "content": "", "tool_calls": [call]})).passed
