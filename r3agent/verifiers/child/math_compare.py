"""Compare with math-verify in a worker process. Only a worker imports this.

An answer in LaTeX is parsed by a grammar. A plain one reaches sympy's `parse_expr`, which evaluates Python, only if it
matches math-verify's pattern: digits, points, the operators + - * / ^ and parentheses.
"""

from __future__ import annotations

import logging
from typing import Any

from math_verify import parse, verify

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limit is off

MARKS = ("$", "\\boxed", "\\(", "\\[")
"""Substrings that identify LaTeX in a text."""


def compare(expected: list[str], given: str, is_answer: bool, digits: int) -> tuple[bool, str]:
    """Return True if `given` equals one of `expected`, and the text that was parsed from it.

    Args:
        is_answer: `given` is only the answer, not a reply that contains one.

    Raises:
        ValueError: an expected answer cannot be parsed.
    """
    golds = [_parsed(text, is_answer=True) for text in expected]
    for text, gold in zip(expected, golds, strict=True):
        if not gold:
            raise ValueError(f"the expected answer {text!r} is no mathematics; use the verifier exact or normalised")
    found = _parsed(given, is_answer)
    equal = any(verify(gold, found, float_rounding=digits, timeout_seconds=0) for gold in golds)
    return equal, ("" if equal or not found else given.strip()[-80:])


def _parsed(text: str, is_answer: bool) -> list[Any]:
    text = f"${text.strip()}$" if is_answer and not any(mark in text for mark in MARKS) else text
    return parse(text, fallback_mode="no_fallback", parsing_timeout=0)
