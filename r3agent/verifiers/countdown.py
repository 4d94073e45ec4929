"""Countdown: does the answer use exactly the given numbers and equal the target?

An expression is parsed to Python's syntax tree and walked; only the four operators, parentheses and plain
decimal integers are evaluated, in exact rational arithmetic. Nothing is ever passed to `eval`, and length and
nesting are bounded before parsing, so a hostile string costs microseconds.
Source of the rules: TinyZero's Countdown, without its `**` and `//` and without its reward for format.
"""

from __future__ import annotations

import ast
import operator
import re
from collections import Counter
from fractions import Fraction

from r3agent.trajectory import Task, Verdict

MAX_EXPRESSION_CHARS = 200
MAX_NUMBER_DIGITS = 9

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_ALLOWED = re.compile(r"[0-9+\-*/() \t\n]+", re.ASCII)
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def countdown(task: Task, answer: str) -> Verdict:
    """Judge the last `<answer>…</answer>` of `answer` against `task.info["numbers"]` and `["target"]`."""
    tags = _ANSWER.findall(answer)
    if not tags:
        return _failed("no <answer> </answer> in the reply")
    expression = tags[-1].strip().removesuffix(f"= {task.info['target']}").strip()
    try:
        value, used = evaluate(expression)
    except ValueError as error:
        return _failed(str(error))
    if Counter(used) != Counter(task.info["numbers"]):
        return _failed(f"uses {sorted(used)}, not {sorted(task.info['numbers'])} once each")
    if value != task.info["target"]:
        return _failed(f"equals {value}, not {task.info['target']}")
    return Verdict(passed=True, score=1.0)


def evaluate(expression: str) -> tuple[Fraction, list[int]]:
    """Value and numbers of an arithmetic expression.

    Raises:
        ValueError: it is not one; too long, unknown characters, other syntax, or a division by zero.
    """
    if len(expression) > MAX_EXPRESSION_CHARS:
        raise ValueError(f"{len(expression)} characters; an expression has at most {MAX_EXPRESSION_CHARS}")
    if not _ALLOWED.fullmatch(expression):
        raise ValueError("only numbers, + - * / and parentheses are allowed")
    if re.search(rf"\d{{{MAX_NUMBER_DIGITS + 1}}}", expression):
        raise ValueError(f"a number has at most {MAX_NUMBER_DIGITS} digits")
    try:
        tree = ast.parse(" ".join(expression.split()), mode="eval")
    except (SyntaxError, MemoryError, RecursionError):
        raise ValueError("not an arithmetic expression") from None
    used: list[int] = []
    return _value(tree.body, used), used


def _value(node: ast.expr, used: list[int]) -> Fraction:
    match node:
        case ast.Constant(value=int(number)):
            used.append(number)
            return Fraction(number)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            left_value, right_value = _value(left, used), _value(right, used)
            try:
                return _OPERATORS[type(op)](left_value, right_value)
            except ZeroDivisionError:
                raise ValueError("division by zero") from None
        case _:
            raise ValueError("only numbers, + - * / and parentheses are allowed")


def _failed(why: str) -> Verdict:
    return Verdict(passed=False, score=0.0, feedback=why)
