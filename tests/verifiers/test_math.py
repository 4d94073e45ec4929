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
        (1e-05, "0.00001"),
        ("1E5", r"\boxed{10^5}"),
        (r"6.02 \times 10^{23}", r"\boxed{6.02e23}"),
        ("2.5e-3", "The answer is 2.5e-3."),
        ("1,000.5", "<answer>1000.5</answer>"),
        ("1e-20", r"<answer>10^{-20}</answer>"),
        (0.1 + 0.2, "0.3"),
        (5.0, "5"),
        ("1/12", r"\boxed{0.08333333}"),
        ("50%", "50 percent"),
        (r"12.5\%", "<answer>0.125</answer>"),
        ("12.5%", "12.5"),
        ("5", "<answer>5 cm</answer>"),
        ("5 cm", r"\boxed{5}"),
        ("5", r"\boxed{5\,\text{m}^2}"),
        ("5 m/s", r"$5\ \mathrm{m/s}$"),
        ("5 km", "<answer>5 kilometers</answer>"),
        ("5", r"<answer>\$5</answer>"),
        ("$1,234.50", "<answer>1234.5 dollars</answer>"),
        ("5", "<answer>USD 5</answer>"),
        ("5", "<answer>5 €</answer>"),
        ("90", r"\boxed{90^\circ}"),
        ("90 degrees", "<answer>90°</answer>"),
        ("5", "<answer>5 red apples</answer>"),
        ("1/2", "<answer>1/2 cup</answer>"),
        ("3/2", "<answer>1 1/2 hours</answer>"),
        (r"1\frac{1}{2}", "1½"),
        ("1.5 million", "<answer>1,500,000</answer>"),
        ("5", "<answer>**5**</answer>"),
        ("5", "So:\n\n**Answer:** `5`"),
        ("5", "<answer>The answer is 5.</answer>"),
        ("5", "<answer>Since 2 + 3 = 5, the answer is $5$.</answer>"),
        ("5", "<answer>She has 5 apples left.</answer>"),
        ("5", "<answer>= 5</answer>"),
        ("-5", "−5"),
        (r"\infty", "<answer>∞</answer>"),
        ("(-\\infty, 3]", "<answer>(-∞, 3]</answer>"),
        (r"2\sqrt{3}\pi", "<answer>2√3π</answer>"),
        ("x^2", "<answer>x²</answer>"),
        ("0.3x", "<answer>0.1x + 0.2x</answer>"),
        ("He has <<3*4=12>>12.\n#### 1,200", "3 * 4 = 12\n#### 1200"),
        ("42", r"\boxed{7}, no: \boxed{\boxed{42}}"),
        ("42", r"\boxed{42}. So $\boxed{42}$."),
        ("1, 2", "<answer>x = 1 or x = 2</answer>"),
        ("5 or 6", "<answer>5 or 6</answer>"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"$\begin{pmatrix}1\\2.0\end{pmatrix}$"),
        ("10\\,000", "<answer>10 000</answer>"),
        (r"0.1\overline{6}", "<answer>1/6</answer>"),
        (r"\approx 3.5", "<answer>≈ 3.5</answer>"),
        ("x^2", "<answer>x**2</answer>"),
        ("0.0015", "<answer>1.5 x 10⁻³</answer>"),
        ("0.0015", "<answer>1.5 × 10^-3</answer>"),
        (r"\ln 2", "<answer>ln(2)</answer>"),
        (r"\sin x", "<answer>sin(x)</answer>"),
        ("e^2", "<answer>exp(2)</answer>"),
        (r"\cos 60^\circ", "<answer>1/2</answer>"),
        (r"\emptyset", r"<answer>\varnothing</answer>"),
        (r"\langle 1,2\rangle", r"<answer>\langle 1, 2 \rangle</answer>"),
        (r"(-\infty, 3]", r"<answer>x \le 3</answer>"),
        ("B", "<answer>(B) 12</answer>"),
        ("5", "<answer>*5*</answer>"),
        ("5", "<answer>```\n5\n```</answer>"),
        ("5 m²", "<answer>5 square meters</answer>"),
        ("60 mph", "<answer>60 miles per hour</answer>"),
        ("-40", "<answer>-40°C</answer>"),
        (r"20^\circ\text{C}", "<answer>20 degrees</answer>"),
        ("£5", "<answer>5 pounds</answer>"),
        ("1001_2", "<answer>1001_{2}</answer>"),
        ("January 5", "<answer>January 5</answer>"),
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
        ("1e-20", "2e-20", "2e-20 is not 1e-20"),
        ("0.0000001", "<answer>0.0000002</answer>", "is not"),
        ("1e-20", "<answer>0</answer>", "is not"),
        ("1e-20", "The answer is 1", "is not"),
        (r"\frac{1}{2004!}", r"\boxed{\frac{1}{2006!}}", "is not"),
        ("(0, 10^{-20})", "<answer>(0, 2*10^{-20})</answer>", "is not"),
        ("x/10^{20}", "<answer>2x/10^{20}</answer>", "is not"),
        ("10^{100}", "<answer>10^{100}+1</answer>", "is not"),
        ("100", "<answer>99.9999999</answer>", "is not"),
        ("1000", "<answer>1,00</answer>", "is not"),
        (r"\infty", r"<answer>-\infty</answer>", "is not"),
        (r"1 - \frac{1}{\mathrm{e}}", r"\boxed{1 + \frac{1}{\mathrm{e}}}", "is not"),
        ("4", r"The area is $4\sqrt(2)$.", "no mathematics"),
        ("5 km", "<answer>5 m</answer>", "is not"),
        ("5 dollars", "<answer>5 cents</answer>", "is not"),
        ("5", "<answer>5 million</answer>", "is not"),
        ("5 m/s", "<answer>5 km/h</answer>", "is not"),
        ("5 mph", "<answer>5 km/h</answer>", "is not"),
        ("5 m^2", "<answer>5 cm^2</answer>", "is not"),
        ("5 kg/m^3", "<answer>5 g/m^3</answer>", "is not"),
        ("20°C", "<answer>20°F</answer>", "is not"),
        ("1001_2", "<answer>1001_3</answer>", "is not"),
        ("2024-01-05", "<answer>2024-05-01</answer>", "is not"),
        ("2024-01-05", "<answer>2018</answer>", "is not"),
        ("January 5", "<answer>February 5</answer>", "is not"),
        (r"\langle 1,2\rangle", r"<answer>\langle 2,1 \rangle</answer>", "is not"),
        ("B", "<answer>(C) 12</answer>", "is not"),
        ("5", "<answer>5x</answer>", "is not"),
        ("5", "<answer>sin 5</answer>", ""),
        ("5", "<answer>less than 5</answer>", ""),
        ("30", "<answer>5 hours 30 minutes</answer>", ""),
        ("1 1/2", "<answer>1/2</answer>", "is not"),
        ("11/2", "<answer>1 1/2</answer>", "is not"),
        ("6", "<answer>5\n6</answer>", "is not"),
        ("6", r"\boxed{5} or \boxed{6}", "is not"),
        ("6", r"\boxed{5 \text{ or } 6}", "is not"),
        ("6", "x = 5 or x = 6", "is not"),
        ("6", "It is $5$ or $6$.", "is not"),
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


@pytest.mark.parametrize("reply", ["1e9999 million", "$1e-9999 dozen", "9" * 1900 + " thousand", "answer is " * 190])
def test_an_answer_of_any_size_is_judged(reply: str) -> None:
    assert not judged(expecting("7"), reply).passed
    assert not judged(expecting("7"), f"<answer>{reply}</answer>").passed


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


NUMBERS = st.integers(-(10**6), 10**6) | st.decimals(-1000, 1000, places=3, allow_nan=False)
FORMS = ("{}", "<answer>{}</answer>", r"\boxed{{{}}}", "The answer is {}.", "<answer>It is {} apples.</answer>", "${}$")


@given(NUMBERS, NUMBERS, st.integers(-30, 30), st.sampled_from(FORMS))
@settings(max_examples=100, deadline=None)
def test_a_number_is_equal_to_itself_and_to_no_other(one: Any, other: Any, power: int, form: str) -> None:
    task = expecting(f"{one}e{power}")
    assert judged(task, form.format(f"{one}e{power}")).passed
    assert judged(task, form.format(f"{other}e{power}")).passed == (one == other)
    if one != other:
        assert not judged(expecting(f"{other}"), form.format(f"{one} or {other}")).passed


@given(st.fractions(max_denominator=99), st.integers(2, 9))
@settings(max_examples=40, deadline=None)
def test_a_fraction_is_equal_to_itself_expanded_and_to_no_other(value: Fraction, by: int) -> None:
    a, b = value.numerator * by, value.denominator * by
    assert judged(expecting(f"{value}"), rf"<answer>\frac{{{a}}}{{{b}}}</answer>").passed
    assert not judged(expecting(f"{value}"), rf"<answer>\frac{{{a + 1}}}{{{b}}}</answer>").passed
