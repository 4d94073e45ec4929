"""Judge Countdown: the answer must use exactly the given numbers and equal the target.

An expression is parsed to Python's syntax tree and walked; only the four operators, parentheses and plain decimal
integers are evaluated, in exact rational arithmetic. `eval` is never used, and length and digits are limited before
parsing, so a hostile string costs microseconds.
Source of the rules: TinyZero's Countdown, without its `**` and `//` and without its reward for format.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from fractions import Fraction

from r3agent.records.trajectory import Task, Verdict
from r3agent.verifiers.interface import needed
from r3agent.verifiers.text import tagged

MAX_EXPRESSION_CHARS = 200
MAX_NUMBER_DIGITS = 9

_ALLOWED = re.compile(r"[\d+\-*/()\s]*", re.ASCII)


def countdown(task: Task, answer: str) -> Verdict:
    """Judge the last `<answer>…</answer>` of `answer` against `task.info["numbers"]` and `["target"]`.

    In `EXPRESSION = VALUE`, only the expression is judged.
    """
    content = tagged(answer)
    if content is None:
        return Verdict.failed("no <answer> </answer> in the reply", readable=False)
    try:
        value, used = evaluate(content.partition("=")[0])
    except ValueError as error:
        return Verdict.failed(str(error), readable=False)
    if Counter(used) != Counter(needed(task, "numbers")):
        return Verdict.failed(f"uses {sorted(used)}, not {sorted(task.info['numbers'])} once each")
    if value != needed(task, "target"):
        return Verdict.failed(f"equals {value}, not {task.info['target']}")
    return Verdict(passed=True, score=1.0)


def evaluate(expression: str) -> tuple[Fraction, list[int]]:
    """Return the value and the numbers of an arithmetic expression.

    Raises:
        ValueError: it is empty, too long, divides by zero, or has other characters or syntax.
    """
    if len(expression) > MAX_EXPRESSION_CHARS:
        raise ValueError(f"{len(expression)} characters; an expression has at most {MAX_EXPRESSION_CHARS}")
    if not _ALLOWED.fullmatch(expression):
        raise ValueError("only whole numbers, + - * / and parentheses are allowed")
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
        case ast.BinOp(left=left, op=op, right=right):
            return _apply(op, _value(left, used), _value(right, used))
        case ast.UnaryOp():
            raise ValueError("a sign before a number is not allowed; subtract instead")
        case _:
            raise ValueError("not an arithmetic expression")


def _apply(op: ast.operator, left: Fraction, right: Fraction) -> Fraction:
    match op:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div() if right == 0:
            raise ValueError("division by zero")
        case ast.Div():
            return left / right
        case _:
            raise ValueError("** and // are not allowed; only + - * /")
