from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r3agent.records.trajectory import Task, Verdict
from r3agent.verifiers import judge
from r3agent.verifiers.math_answer import Math
from tests.support.trees import span

judged = Math()


def expecting(answer: Any) -> Task:
    return Task(id="m", messages=({"role": "user", "content": "?"},), info={"answer": answer})


@pytest.mark.parametrize(
    ("expected", "reply"),
    [
        ("1/2", "0.5"),
        ("1/2", r"<answer>\frac{2}{4}</answer>"),
        (r"$\frac{1}{2}$", "<answer>1/2</answer>"),
        (42, "The answer is 42."),
        ("42", r"First 6, then 7, hence $\boxed{42}$."),
        ("42", r"\boxed{42}"),
        ("1,000", "<answer>1000</answer>"),
        ("x^2+1", "<answer>1+x^2</answer>"),
        ("x^2-1", r"<answer>(x-1)(x+1)</answer>"),
        (r"\sqrt{2}/2", r"<answer>\frac{1}{\sqrt{2}}</answer>"),
        ("x=3", "<answer>3</answer>"),
        (r"\{1,2\}", r"<answer>\{2,1\}</answer>"),
        (r"50\%", "<answer>0.5</answer>"),
        ("10^{100}", "<answer>10^{100}</answer>"),
        (["7", "1/2"], "<answer>0.5</answer>"),
        ("3", "<answer>2</answer> no: <answer>3</answer>"),
    ],
)
def test_what_is_equal_passes(expected: Any, reply: str) -> None:
    assert judged(expecting(expected), reply) == Verdict(passed=True, score=1.0)


@pytest.mark.parametrize(
    ("expected", "reply", "says"),
    [
        ("42", "43", "43 is not 42"),
        ("1/3", "<answer>0.333</answer>", "0.333 is not 1/3"),
        ("(1,2)", "<answer>(2,1)</answer>", "is not (1,2)"),
        (["7", "8"], "9", "9 is not 7 or 8"),
        ("3", "<answer>3</answer> no: <answer>2</answer>", "2 is not 3"),
        ("5", "", "no mathematics in the answer"),
        ("5", "I do not know.", "no mathematics in the answer"),
        ("5", "<answer></answer>", "no mathematics in the answer"),
        ("5", "<answer>" + "1+" * 2000 + "1</answer>", "4001 characters; an answer has at most 2000"),
    ],
)
def test_what_is_not_equal_fails_and_says_why(expected: Any, reply: str, says: str) -> None:
    verdict = judged(expecting(expected), reply)
    assert (verdict.passed, verdict.score) == (False, 0.0)
    assert says in (verdict.feedback or "")


def test_the_end_of_a_long_reply_is_looked_at() -> None:
    assert judged(expecting("42"), "so 7. " * 100_000 + "The answer is 42.").passed


@pytest.mark.parametrize("expected", ["", "?!", []])
def test_an_expectation_that_is_no_mathematics_is_an_error(expected: Any) -> None:
    if expected == []:
        assert not judged(expecting(expected), "5").passed
    else:
        with pytest.raises(RuntimeError, match="is no mathematics; use the verifier exact or normalised"):
            judged(expecting(expected), "5")
    with pytest.raises(KeyError, match="answer"):
        judged(Task(messages=({"role": "user", "content": "?"},)), "5")


def test_digits_say_how_well_decimals_must_agree() -> None:
    assert not judged(expecting("3.14159"), "3.14").passed
    assert Math(digits=2)(expecting("3.14159"), "3.14").passed


async def test_it_works_in_threads() -> None:
    verdicts = await judge(judged, expecting("1/2"), [span("attempt", text=text) for text in ("0.5", "0.6")])
    assert [verdict.passed for verdict in verdicts] == [True, False]


@pytest.mark.parametrize("reply", ["The answer is 9^9^9^9", r"$\sum_{n=1}^{10^{9}} n^{n!}$"])
def test_what_never_ends_fails(reply: str) -> None:
    verdict = Math(cpu_s=1)(expecting("7"), reply)
    assert verdict == Verdict(passed=False, score=0.0, feedback="comparing the answer took more than 1 s")


def test_code_is_never_run(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    code = f"open({str(trace)!r}, 'w')"
    for attempt in (
        code,
        f"1+{code}",
        f"(1).{code}",
        f"$ {code} $",
        rf"\boxed{{{code}}}",
        rf"\text{{{code}}}",
        f"${code}$+1",
    ):
        for reply in (attempt, f"<answer>{attempt}</answer>", f"The answer is {attempt}"):
            assert not judged(expecting("777"), reply).passed
    assert not trace.exists()


@given(st.text(max_size=60) | st.text("0123456789.,^*/+-()$\\{}[]%=frac boxed", max_size=60))
@settings(max_examples=60, deadline=None)
def test_any_reply_gets_a_verdict(text: str) -> None:
    for reply in (text, f"<answer>{text}</answer>"):
        assert not Math(cpu_s=1)(expecting("987654321"), reply).passed


@given(st.fractions(max_denominator=99), st.integers(2, 9))
@settings(max_examples=40, deadline=None)
def test_a_fraction_is_equal_to_itself_expanded_and_to_no_other(value: Fraction, by: int) -> None:
    a, b = value.numerator * by, value.denominator * by
    assert judged(expecting(f"{value}"), rf"<answer>\frac{{{a}}}{{{b}}}</answer>").passed
    assert not judged(expecting(f"{value}"), rf"<answer>\frac{{{a + 1}}}{{{b}}}</answer>").passed
