"""Compare with math-verify in a worker process. Only a worker imports this.

An answer in LaTeX is parsed by a grammar. A plain one reaches sympy's `parse_expr`, which evaluates Python, only if it
matches math-verify's pattern: digits, points, the operators + - * / ^ and parentheses.

Numbers are compared here and not by math-verify, which rounds them to a number of decimals: 1e-20 equals 2e-20 there.
"""

from __future__ import annotations

import logging
import re
from typing import Any

import math_verify.grader as grader
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from math_verify.parser import convert_to_pct
from sympy import Float, Integer, MatrixBase, MatrixExpr, N, Rational, Set, Tuple, floor, log, nsimplify, simplify

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limit is off

MARKS = ("$", "\\boxed", "\\(", "\\[")
"""Substrings that identify LaTeX in a text."""
EXACT_DIGITS = 50
FLOAT_ERROR = 2e-15
"""Relative error of a few operations with floats."""

NO_PRODUCTS = ("dollar", "cent", "euro", "pound sterling", "yen", "rupee", "celsius", "fahrenheit")
TEMPERATURES = ({"degree", "celsius"}, {"degree", "fahrenheit"})
POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
"""Words that raise the unit after them to a power."""
UNIT_NAMES = {
    **dict.fromkeys(("h", "hr", "hrs"), "hour"),
    **dict.fromkeys(("min", "mins"), "minute"),
    **dict.fromkeys(("sec", "secs"), "second"),
    **dict.fromkeys(("kph", "kmh", "kmph"), "kilometer/hour"),
    **dict.fromkeys(("lb", "lbs"), "pound"),
    **dict.fromkeys(("metre", "metres"), "meter"),
    **dict.fromkeys(("L", "litre", "litres"), "liter"),
    "mph": "mile/hour",
    "mi": "mile",
    "in": "inch",
    "mL": "milliliter",
}
"""Names that sympy gives to units, by others."""
AMBIGUOUS = ("pound", "pounds")
"""Words that are a weight or a currency."""

_UNITS = re.compile(r"(/?)\s*([A-Za-zµΩ°]+)\.?(?:\s?\^?\{?(-?\d)\}?)?")
_compare_matrices = grader.sympy_numeric_eq


def compare(expected: list[dict[str, Any]], given: dict[str, Any], digits: int) -> tuple[bool, str]:
    """Return True if `given` equals one of `expected`, and the text that was parsed from it.

    Args:
        expected: readings, as `quantities.Reading` has them.

    Raises:
        ValueError: an expected answer cannot be parsed.
    """
    golds = [_parsed(reading) for reading in expected]
    for reading, gold in zip(expected, golds, strict=True):
        if not gold:
            text = reading["text"]
            raise ValueError(f"the expected answer {text!r} is no mathematics; use the verifier exact or normalised")
    found = _parsed(given)
    equal = any(
        _same_unit(reading["unit"], given["unit"])
        and (reading["is_several"] or isinstance(gold[0], (Set, Tuple)) or not given["is_several"])
        and verify(gold, found, float_rounding=digits, allow_set_relation_comp=True, timeout_seconds=0)
        for reading, gold in zip(expected, golds, strict=True)
    )
    return equal, ("" if equal or not found else given["text"].strip()[-80:])


def _parsed(reading: dict[str, Any]) -> list[Any]:
    if number := reading["number"]:
        is_decimal = any(mark in number for mark in ".eE")
        value: Any = Float(number, len(number) + 30) if is_decimal else Rational(number)
        return [convert_to_pct(value) if reading["is_percent"] else value]
    text, is_answer = reading["text"], reading["is_answer"]
    text = f"${text.strip()}$" if is_answer and not any(mark in text for mark in MARKS) else text
    # In LaTeX that cannot be parsed, plain numbers are parts of the answer: 4 in $4\\sqrt(2)$.
    return parse(
        text,
        [LatexExtractionConfig()] if is_answer else [LatexExtractionConfig(), ExprExtractionConfig()],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=0,
    )


def _same_unit(one: str, other: str) -> bool:
    """Return False if both are known and differ; a missing unit, and one that is not known, fits any."""
    quantities = [_quantity(unit) for unit in (one, other)]
    return None in quantities or quantities[0] == quantities[1] or {*map(str, quantities)} in TEMPERATURES


def _quantity(unit: str) -> Any:
    """Return the product of units that a text names, or `None` if one of its words is none; of others, the text."""
    from sympy.physics import units

    if unit in NO_PRODUCTS or unit.startswith("base "):
        return unit
    found: Any = Integer(1)
    parts: list[Any]
    power = sign = 1
    for mark, word, exponent in _UNITS.findall(unit):
        sign = -1 if mark == "/" or word == "per" else sign
        if word in POWERS or word == "per":
            power = POWERS.get(word, power)
            continue
        parts = [getattr(units, part, None) for part in str(UNIT_NAMES.get(word, word)).split("/")]
        if word in AMBIGUOUS or not all(isinstance(part, units.Quantity) for part in parts):
            return None
        found *= (parts[0] / parts[1] if len(parts) == 2 else parts[0]) ** (sign * power * int(exponent or 1))
        power = 1
    return None if found == 1 else found


def _equal_numbers(one: Any, other: Any, digits: int, precision: int) -> bool:
    """Compare numbers, and expressions with floats; this replaces math-verify's `sympy_numeric_eq`.

    Exact numbers must be equal. With a float, numbers agree in `digits` decimals, and those below 1 in as many
    significant digits; an integer equals only a float that is one.
    """
    if isinstance(one, (MatrixBase, MatrixExpr)) or isinstance(other, (MatrixBase, MatrixExpr)):
        return _compare_matrices(one, other, digits, precision)
    if any(grader.get_pct_val(value) is not None for value in (one, other)):
        bare: list[Any] = [grader.safe_sympy_doit(grader.get_pct_val(value, value)) for value in (one, other)]
        if _are_near(bare[0], bare[1], digits) and abs(bare[0]) >= 1:
            return True  # 50% and 50
    if not (one.is_number and other.is_number):
        exact = [nsimplify(value, rational=True) for value in (one, other)]
        return exact != [one, other] and simplify(exact[0] - exact[1]) == 0
    return _are_near(grader.safe_sympy_doit(one), grader.safe_sympy_doit(other), digits)


def _are_near(one: Any, other: Any, digits: int) -> bool:
    floats = [value.has(Float) for value in (one, other)]
    if isinstance(one, Rational) and isinstance(other, Rational):
        return bool(one == other)
    size = max(abs(N(value, EXACT_DIGITS)) for value in (one, other))
    if not size.is_finite:
        return bool(one == other)
    difference = abs(N(one - other, EXACT_DIGITS))
    if not any(floats):
        return bool(difference <= size * Float(10) ** -40)
    allowed = size * FLOAT_ERROR
    if not (isinstance(one, Integer) or isinstance(other, Integer)):
        decimals = digits if size >= 1 else digits - _magnitude(size)
        allowed += Float(10) ** -decimals / 2
    return bool(difference <= allowed)


def _magnitude(size: Any) -> int:
    """Return the number of digits before the point, negative for zeros after it."""
    return int(floor(log(size, 10))) + 1 if size > 0 else 0


if not hasattr(grader, "sympy_numeric_eq"):
    raise ImportError("this version of math-verify has no grader.sympy_numeric_eq: install math-verify 0.8 or 0.9")
grader.sympy_numeric_eq = _equal_numbers
