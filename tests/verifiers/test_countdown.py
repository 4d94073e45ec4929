from __future__ import annotations

import operator
import re
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r3agent.records.trajectory import Task, Verdict
from r3agent.verifiers.countdown import countdown, evaluate

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}

trees = st.recursive(st.integers(0, 999), lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner), max_leaves=8)


def problem(*numbers: int, target: int) -> Task:
    return Task(id="c", messages=({"role": "user", "content": "?"},), info={"numbers": numbers, "target": target})


def judged(expression: str, *numbers: int, target: int) -> Verdict:
    return countdown(problem(*numbers, target=target), f"<answer>{expression}</answer>")


def leaves(tree: Any) -> list[int]:
    return [tree] if isinstance(tree, int) else leaves(tree[0]) + leaves(tree[2])


def value(tree: Any) -> Fraction | None:
    """Value of the tree, or `None` where it divides by zero."""
    if isinstance(tree, int):
        return Fraction(tree)
    left, right = value(tree[0]), value(tree[2])
    if left is None or right is None or (tree[1] == "/" and right == 0):
        return None
    return OPERATIONS[tree[1]](left, right)


def written(tree: Any, space: str, above: int = 0) -> str:
    """The tree with only the parentheses that school arithmetic needs."""
    if isinstance(tree, int):
        return str(tree)
    left, op, right = tree
    here = PRECEDENCE[op]
    text = f"{written(left, space, here)}{space}{op}{space}{written(right, space, here + 1)}"
    return f"({text})" if here < above else text


@given(trees, st.sampled_from(["", " ", "\n"]))
def test_evaluation_agrees_with_school_arithmetic(tree: Any, space: str) -> None:
    expected = value(tree)
    if expected is None:
        with pytest.raises(ValueError, match="division by zero"):
            evaluate(written(tree, space))
    else:
        assert evaluate(written(tree, space)) == (expected, leaves(tree))


@given(trees, st.randoms(use_true_random=False), st.integers(-1, 1))
def test_verdict_is_right_numbers_and_right_value(tree: Any, rng: Any, off_by: int) -> None:
    numbers, worth = leaves(tree), value(tree)
    rng.shuffle(numbers)
    target = off_by + (0 if worth is None else worth.__floor__())
    verdict = judged(written(tree, " "), *numbers, target=target)
    assert verdict.passed == (worth == target)
    assert verdict.passed == (verdict.feedback is None)


@given(trees, st.data())
def test_a_number_too_many_or_too_few_fails(tree: Any, data: st.DataObject) -> None:
    numbers, worth = leaves(tree), value(tree)
    target = 0 if worth is None else worth.__floor__()
    extra = data.draw(st.integers(0, 999))
    missing = data.draw(st.integers(0, len(numbers) - 1))
    assert not judged(written(tree, ""), *numbers, extra, target=target).passed
    assert not judged(written(tree, ""), *numbers[:missing], *numbers[missing + 1 :], target=target).passed


@pytest.mark.parametrize(
    ("reply", "passed"),
    [
        ("<answer>1+2</answer>", True),
        ("<answer>2+2</answer> no: <answer>1+2</answer>", True),
        ("<answer>1+2</answer> no: <answer>2+2</answer>", False),
        ("<answer>2+2 <answer>1+2</answer>", True),
        ("<answer>1+2</answer> or <answer>2+2", True),
        ("1+2", False),
        ("<answer>1+2", False),
        ("1+2</answer>", False),
        ("</answer>1+2<answer>", False),
    ],
)
def test_last_closed_answer_counts(reply: str, passed: bool) -> None:
    assert countdown(problem(1, 2, target=3), reply).passed is passed


@pytest.mark.parametrize("equation", ["1+2=3", "1 + 2 = 3", " 1+2 =3\n", "1+2=", "1+2 = 4", "1+2 = x = y"])
def test_only_what_is_before_the_first_equals_sign_is_judged(equation: str) -> None:
    assert judged(equation, 1, 2, target=3).passed
    assert not judged(equation, 1, 2, target=4).passed


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("", "not an arithmetic expression"),
        ("   ", "not an arithmetic expression"),
        ("= 3", "not an arithmetic expression"),
        ("\0", "only whole numbers"),
        ("1+2\0", "only whole numbers"),
        ("2**3", "** and // are not allowed"),
        ("2*2**99999999", "** and // are not allowed"),
        ("7//2", "** and // are not allowed"),
        ("-1+4", "a sign before a number is not allowed; subtract instead"),
        ("4+-1", "a sign before a number is not allowed; subtract instead"),
        ("+3", "a sign before a number is not allowed; subtract instead"),
        ("-" * 199 + "1", "a sign before a number is not allowed; subtract instead"),
        ("1/0", "division by zero"),
        ("1/(2-2)", "division by zero"),
        ("1234567890", "a number has at most 9 digits"),
        ("9" * 10**6, "1000000 characters; an expression has at most 200"),
        ("(" * 5000 + "1" + ")" * 5000, "10001 characters; an expression has at most 200"),
        ("(" * 100 + "1" + ")" * 99, "not an arithmetic expression"),
        ("(" * 199, "not an arithmetic expression"),
        ("007", "not an arithmetic expression"),
        ("1 2", "not an arithmetic expression"),
        ("1+", "not an arithmetic expression"),
        ("()", "not an arithmetic expression"),
        ("1(2)", "not an arithmetic expression"),
        ("(1)(2)", "not an arithmetic expression"),
        ("1_0", "only whole numbers"),
        ("1.0", "only whole numbers"),
        ("1e9", "only whole numbers"),
        ("0x10", "only whole numbers"),
        ("1,2", "only whole numbers"),
        ("x", "only whole numbers"),
        ("__import__('os')", "only whole numbers"),
        ("[1]", "only whole numbers"),
        ("1 if 1 else 2", "only whole numbers"),
        ("1 × 2", "only whole numbers"),
        ("٣+١", "only whole numbers"),
        ("３", "only whole numbers"),
        ("1\u00a0+2", "only whole numbers"),
        ("1+1", "uses [1, 1], not [1, 2] once each"),
        ("1+2+2", "uses [1, 2, 2], not [1, 2] once each"),
        ("12", "uses [12], not [1, 2] once each"),
        ("1-2", "equals -1, not 3"),
        ("1/2", "equals 1/2, not 3"),
    ],
)
def test_what_is_wrong_fails_and_says_why(expression: str, says: str) -> None:
    verdict = judged(expression, 1, 2, target=3)
    assert (verdict.passed, verdict.score) == (False, 0.0)
    assert says in (verdict.feedback or "")


@given(st.text() | st.text("0123456789+-*/()= \n\0", max_size=60))
def test_any_reply_gets_a_verdict(text: str) -> None:
    for reply in (text, f"<answer>{text}</answer>"):
        verdict = countdown(problem(target=0), reply)
        assert not verdict.passed, "no expression is without numbers"
        assert verdict.feedback


WORTH_TRYING = [
    *["1", "2", "3", "12", "+", "-", "*", "/", "**", "//", "(", ")", " ", "=", ".", ",", "_", "e9", "٣", "²", "×", "x"],
    *["()", "((((((((((", "1(", "print(", "__import__('os')", "[1]", "9" * 10, "9" * 300, "\0", "\n", "\\\n", "#", ";"],
]
tokens = st.sampled_from(WORTH_TRYING)


@given(st.lists(tokens, max_size=14).map("".join))
@settings(max_examples=500)
def test_what_passes_has_four_operators_and_the_numbers_once_each(expression: str) -> None:
    for target in range(-3, 10):
        if judged(expression, 1, 2, 3, target=target).passed:
            left = expression.partition("=")[0]
            assert re.fullmatch(r"[123+\-*/()\s]*", left, re.ASCII)
            assert sorted(re.findall(r"\d+", left)) == ["1", "2", "3"]
            assert "**" not in left
            assert "//" not in left


@pytest.mark.parametrize(
    "expression",
    [
        "9" * 10**7,
        "1+" * 10**6 + "1",
        "(" * 10**6 + "1" + ")" * 10**6,
        "**".join(["9"] * 60),
        "9**9**9**9**9",
        "999999999*" * 19 + "999999999",
        "1/999999999/" * 15 + "1",
        "(((1+1)*9)-" * 15 + "1" + ")" * 15,
        "1//1",
        "1/ /1",
        "1* *1",
        "(1).real",
        "1if 1else 2",
        "1\\\n+1",
        "1+1#",
        "1;1",
        "𝟏+𝟐",
        "①+②",
        "1\u200b+2",
        "1\u2212 2",
        "<answer>" * 10**5,
        "</answer>" * 10**5,
    ],
)
def test_hostile_strings_fail(expression: str) -> None:
    for reply in (expression, f"<answer>{expression}</answer>", f"<answer>{expression}", f"{expression}</answer>"):
        verdict = countdown(problem(1, 2, target=3), reply)
        assert not verdict.passed
        assert len(verdict.feedback or "") < 600


@given(st.integers(0, 120))
def test_nesting_is_either_read_or_refused(depth: int) -> None:
    expression = "(" * depth + "1+2" + ")" * depth
    assert judged(expression, 1, 2, target=3).passed == (len(expression) <= 200 and depth < 100)
