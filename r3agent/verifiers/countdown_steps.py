"""Board of Countdown by moves, and the verdict on it: the one number that is left equals the target.

The rules are in `result`: a move takes two numbers from the board and puts one back, a whole number of at
least 1.
"""

from __future__ import annotations

import json
from typing import Any, cast

from r3agent._util.messages import shorten
from r3agent.records.trajectory import Task, Verdict
from r3agent.verifiers.interface import Answer, needed


def result(a: int, op: str, b: int) -> int | str:
    """Return the result of an operation on two numbers, or why it is not a number of the game."""
    match op:
        case "+":
            return a + b
        case "*":
            return a * b
        case "-" if a > b:
            return a - b
        case "-":
            return f"{a} - {b} is below 1"
        case "/" if b and a % b == 0:
            return a // b
        case "/":
            return f"{a} / {b} is not a whole number"
        case _:
            return f"{shorten(op)} is none of + - * /"


class Board:
    """Numbers that are left of one try, and the target."""

    def __init__(self, numbers: list[int], target: int) -> None:
        self.numbers = list(numbers)
        self.target = target

    @property
    def is_won(self) -> bool:
        return self.numbers == [self.target]

    def combine(self, a: Any, op: Any, b: Any) -> str:
        """Make a move and describe the board after it; a move that is not allowed changes nothing."""
        try:
            self._move(a, op, b)
        except ValueError as error:
            return f"refused: {error}; {self._left()}"
        if len(self.numbers) > 1:
            return self._left()
        return f"{self._left()}: the target is {'reached' if self.is_won else 'missed'}"

    def _move(self, a: Any, op: Any, b: Any) -> None:
        rest = list(self.numbers)
        for number in (a, b):
            if type(number) is not int or number not in rest:
                raise ValueError(f"{shorten(number)} is not there")
            rest.remove(number)
        if isinstance(found := result(a, op, b), str):
            raise ValueError(found)
        self.numbers = [found, *rest]

    def _left(self) -> str:
        return f"left: {', '.join(map(str, self.numbers))}"


def countdown_steps(task: Task, answer: Answer, environment: object = None) -> Verdict:
    """Judge the board that a try left behind; without one, play the try's calls of `combine` on a new one.

    Args:
        environment: board of `r3agent.tasks.countdown_steps.board`.
    """
    board = environment if isinstance(environment, Board) else _played(task, answer)
    if board.is_won:
        return Verdict(passed=True, score=1.0)
    left = ", ".join(map(str, board.numbers))
    return Verdict.failed(f"left: {left}, where {board.target} should be the one number that is left")


def _played(task: Task, answer: Answer) -> Board:
    board = Board(needed(task, "numbers"), needed(task, "target"))
    calls = [call for message in answer.messages for call in message.get("tool_calls") or ()] or answer.tool_calls
    for call in calls:
        move = _move_of(call["function"])
        board.combine(move.get("a"), move.get("op"), move.get("b"))
    return board


def _move_of(function: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call of `combine`; none of another call, or where they are not an object."""
    try:
        arguments: object = json.loads(function["arguments"]) if function["name"] == "combine" else None
    except (ValueError, RecursionError):
        return {}
    return cast(dict[str, Any], arguments) if isinstance(arguments, dict) else {}
