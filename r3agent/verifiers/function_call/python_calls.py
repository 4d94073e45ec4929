"""Parse function calls written as Python: `f(a=1)`, `[f(a=1), g(b="x")]`, one on each line, or dicts as in JSON.

The text is parsed to Python's syntax tree and walked; none of it is executed. Arguments have names, and their values
are literals: text, numbers, True, False, None (and JSON's true, false, null), lists, tuples and dicts of them.
"""

from __future__ import annotations

import ast
import math
import threading
import warnings
from typing import Any

WORDS = {"true": True, "false": False, "null": None}
"""Python values of JSON's words."""

MAX_BITS = 4096
"""Maximum size of an integer."""

_QUIET = threading.Lock()


def parse_python(text: str) -> list[tuple[str, dict[str, Any]] | dict[str, Any]]:
    """Return names and arguments of the calls, or the dicts that describe them. The caller limits the length of `text`.

    Raises:
        ValueError: the text is anything but calls with literal arguments.
    """
    try:
        # An odd escape such as "\d" should not print a warning. Warnings can only be silenced for the whole process,
        # hence the lock: verifiers run in threads.
        with _QUIET, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):  # also for null bytes and deep nesting
        raise ValueError("neither JSON nor calls as in Python") from None
    calls: list[tuple[str, dict[str, Any]] | dict[str, Any]] = []
    for statement in tree.body:
        match statement:
            case ast.Expr(value=ast.List(elts=elements) | ast.Tuple(elts=elements)):
                calls += map(_call, elements)
            case ast.Expr(value=element):
                calls.append(_call(element))
            case _:
                raise ValueError("neither JSON nor calls as in Python")
    return calls


def _call(node: ast.expr) -> tuple[str, dict[str, Any]] | dict[str, Any]:
    if isinstance(node, ast.Dict):
        return _dict(node.keys, node.values)
    if not isinstance(node, ast.Call):
        raise ValueError("neither JSON nor calls as in Python")
    if node.args:
        raise ValueError("an argument without a name; write f(name=value)")
    arguments: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError("** in a call; write each argument as name=value")
        if keyword.arg in arguments:  # Python checks this only when it compiles
            raise ValueError("an argument that appears twice")
        arguments[keyword.arg] = _value(keyword.value)
    return _name(node.func), arguments


def _name(node: ast.expr) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise ValueError("what is called has no plain name")
    return ".".join([node.id, *reversed(parts)])


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=str() | bool() | None as value):
            return value
        case ast.Constant(value=int() | float() as number) if _bounded(number):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)) if _bounded(number):
            return -number
        case ast.Name(id=word) if word in WORDS:
            return WORDS[word]
        case ast.List(elts=elements):
            return [_value(element) for element in elements]
        case ast.Tuple(elts=elements):
            return tuple(_value(element) for element in elements)
        case ast.Dict(keys=keys, values=values):
            return _dict(keys, values)
        case _:
            raise ValueError("an argument that is not a literal value")


def _bounded(number: float) -> bool:
    """Return True if a number is finite, and no integer that Python refuses to print, as a hexadecimal one may be."""
    return number.bit_length() <= MAX_BITS if isinstance(number, int) else math.isfinite(number)


def _dict(keys: list[ast.expr | None], values: list[ast.expr]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in zip(keys, values, strict=True):
        if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
            raise ValueError("a key that is not text")
        if key.value in made:
            raise ValueError("a key that appears twice")
        made[key.value] = _value(value)
    return made
