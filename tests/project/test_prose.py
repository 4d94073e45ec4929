"""How docstrings begin, those of fields and constants included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("r3agent", "benchmarks", "examples", "graphs", "tests", "docs")

QUESTIONS = "What Whatever Whether Which Whichever Who Whoever Whose"
PREPOSITIONS = (
    "About Above Against As At Before Below Between By During For From In Into Of On Onto Over Through To Under Until "
    "Upon Via With Within Without"
)
SECTIONS = "Args: Raises: Returns: Yields:"
BEGINNINGS = frozenset(f"{QUESTIONS} {PREPOSITIONS} {SECTIONS}".split())
"""A docstring begins with a noun phrase or an imperative: no question, no bare preposition, no section."""


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Lines and texts: what stands first in a module, class or function, or right after a field or a constant."""
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            body = getattr(node, name, [])
            if not isinstance(body, list):
                continue
            for before, statement in zip([node, *body], body, strict=False):
                match statement:
                    case ast.Expr(value=ast.Constant(value=str() as text)) if documented(before):
                        yield statement.lineno, text


def documented(before: ast.AST) -> bool:
    """Tell whether a string after this is its docstring."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.Assign, ast.AnnAssign)
    return isinstance(before, kinds)


def violations(folder: str) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line}: {text.strip().splitlines()[0]}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, text in docstrings(ast.parse(path.read_text()))
        if text.split(maxsplit=1)[0].rstrip(",") in BEGINNINGS
    ]


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_begin_with_a_noun_or_an_imperative(folder: str) -> None:
    found = violations(folder)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "texts"),
    [
        ('"""Of a module."""', ["Of a module."]),
        ('class A:\n    x: int = 1\n    """For x."""\n', ["For x."]),
        ('def f():\n    """Args:\n    x: y."""\n', ["Args:\n    x: y."]),
        ('f()\n"""no docstring"""', []),
    ],
)
def test_docstrings_are_found_wherever_they_stand(source: str, texts: list[str]) -> None:
    assert [text for _, text in docstrings(ast.parse(source))] == texts
